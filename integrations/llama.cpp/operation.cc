#include "operation.h"

#include <new>

#include "log.h"
#include "riffle/error.h"

namespace riffle::llama {
namespace {

template <typename Read>
std::optional<Operation> ToOperation(const std::optional<Read>& read) {
  return read ? std::optional<Operation>(*read) : std::nullopt;
}

}  // namespace

std::optional<Operation> ReadOperation(const Host& host, const ggml::Tensor& node) {
  if (node.op != host.flash_attention && node.op != host.top_k) {
    return std::nullopt;
  }
  std::string reason;
  const std::optional<Operation> operation = node.op == host.top_k
                                                 ? ToOperation(ReadTopK(host, node, reason))
                                                 : ToOperation(ReadAttention(host, node, reason));
  if (Logging()) {
    LogOnce(Describe(host, node) + (operation ? ": Riffle" : ": llama.cpp, " + reason));
  }
  return operation;
}

int OperationRunner::Run(const Operation& operation) noexcept {
  try {
    if (const auto* attention = std::get_if<AttentionNode>(&operation)) {
      plans_.Attend(*attention);
    } else {
      llama::Run(std::get<TopKNode>(operation), begins_, ends_);
    }
    return ggml::kStatusSuccess;
  } catch (const std::bad_alloc&) {
    return ggml::kStatusAllocFailed;
  } catch (const Error& error) {
    Warn(std::string("failed: ") + error.what());
    return error.code() == Code::kOutOfMemory ? ggml::kStatusAllocFailed : ggml::kStatusFailed;
  } catch (...) {
    return ggml::kStatusFailed;
  }
}

}  // namespace riffle::llama
