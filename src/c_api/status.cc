// Failures as statuses, and the text of the last one.
#include <algorithm>
#include <exception>

#include "c_api/call.h"

namespace riffle::c_api {
namespace {

// Neither allocated nor destroyed: calls made in thread_local destructors can report failures too.
constinit thread_local char last_message[1024] = "";

void KeepMessage(const char* text) noexcept {
  const size_t size = std::min(std::strlen(text), sizeof(last_message) - 1);
  std::memcpy(last_message, text, size);
  last_message[size] = '\0';
}

riffle_status ToStatus(Code code) {
  switch (code) {
    case Code::kBadShape:
      return RIFFLE_BAD_SHAPE;
    case Code::kBadK:
      return RIFFLE_BAD_K;
    case Code::kBadRange:
      return RIFFLE_BAD_RANGE;
    case Code::kBadOption:
      return RIFFLE_BAD_OPTION;
    case Code::kBadDType:
      return RIFFLE_BAD_DTYPE;
    case Code::kBadPage:
      return RIFFLE_BAD_PAGE;
    case Code::kBadSequence:
      return RIFFLE_BAD_SEQUENCE;
    case Code::kBadValue:
      return RIFFLE_BAD_VALUE;
    case Code::kOverlap:
      return RIFFLE_OVERLAP;
    case Code::kOutOfPages:
      return RIFFLE_OUT_OF_PAGES;
    case Code::kOutOfMemory:
      return RIFFLE_OUT_OF_MEMORY;
  }
  return RIFFLE_INTERNAL;
}

}  // namespace

riffle_status ReportException() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    KeepMessage(error.what());
    return ToStatus(error.code());
  } catch (const std::bad_alloc&) {
    KeepMessage("no memory for the bookkeeping of a call");
    return RIFFLE_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    KeepMessage(error.what());
  } catch (...) {
    KeepMessage("an exception of an unknown type");
  }
  return RIFFLE_INTERNAL;
}

}  // namespace riffle::c_api

const char* riffle_error_message() { return riffle::c_api::last_message; }

const char* riffle_status_name(riffle_status status) {
  switch (status) {
    case RIFFLE_OK:
      return "RIFFLE_OK";
    case RIFFLE_BAD_SHAPE:
      return "RIFFLE_BAD_SHAPE";
    case RIFFLE_BAD_K:
      return "RIFFLE_BAD_K";
    case RIFFLE_BAD_RANGE:
      return "RIFFLE_BAD_RANGE";
    case RIFFLE_BAD_OPTION:
      return "RIFFLE_BAD_OPTION";
    case RIFFLE_BAD_DTYPE:
      return "RIFFLE_BAD_DTYPE";
    case RIFFLE_BAD_PAGE:
      return "RIFFLE_BAD_PAGE";
    case RIFFLE_BAD_SEQUENCE:
      return "RIFFLE_BAD_SEQUENCE";
    case RIFFLE_BAD_VALUE:
      return "RIFFLE_BAD_VALUE";
    case RIFFLE_OVERLAP:
      return "RIFFLE_OVERLAP";
    case RIFFLE_OUT_OF_PAGES:
      return "RIFFLE_OUT_OF_PAGES";
    case RIFFLE_OUT_OF_MEMORY:
      return "RIFFLE_OUT_OF_MEMORY";
    case RIFFLE_INTERNAL:
      return "RIFFLE_INTERNAL";
    default:
      return "an unknown status";
  }
}

const char* riffle_version() { return RIFFLE_LIBRARY_VERSION; }
int32_t riffle_c_api_version() { return RIFFLE_C_API_VERSION; }
