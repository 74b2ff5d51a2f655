// Compiles if the structures of python/xla_abi.h are those of jaxlib's header, member by member.
// test_xla_abi.py compiles it with every jaxlib that it finds; there is nothing to run.
#include <xla/ffi/api/c_api.h>

#include "xla_abi.h"

namespace xla = riffle::python::xla;

#define SAME_MEMBER(ours, our_member, theirs, their_member)                          \
  static_assert(offsetof(xla::ours, our_member) == offsetof(theirs, their_member) && \
                    sizeof(static_cast<xla::ours*>(nullptr)->our_member) ==          \
                        sizeof(static_cast<theirs*>(nullptr)->their_member),         \
                #ours "." #our_member)
#define SAME_SIZE(ours, theirs) static_assert(sizeof(xla::ours) == sizeof(theirs), #ours)
#define SAME_NUMBER(ours, theirs) \
  static_assert(static_cast<int>(xla::ours) == static_cast<int>(theirs), #ours)

static_assert(XLA_FFI_API_MAJOR == xla::kMajor);
static_assert(XLA_FFI_API_MINOR <= xla::kNewestMinor,
              "compare the layout, then raise kNewestMinor");

// The extension's own name differs between versions; a metadata extension begins with one.
using TheirExtension = decltype(XLA_FFI_Metadata_Extension::extension_base);
SAME_SIZE(Extension, TheirExtension);
SAME_MEMBER(Extension, struct_size, TheirExtension, struct_size);
SAME_MEMBER(Extension, type, TheirExtension, type);
SAME_MEMBER(Extension, next, TheirExtension, next);
SAME_NUMBER(kMetadataExtension, XLA_FFI_Extension_Metadata);

SAME_SIZE(Version, XLA_FFI_Api_Version);
SAME_MEMBER(Version, extensions, XLA_FFI_Api_Version, extension_start);
SAME_MEMBER(Version, major, XLA_FFI_Api_Version, major_version);
SAME_MEMBER(Version, minor, XLA_FFI_Api_Version, minor_version);

SAME_MEMBER(Metadata, struct_size, XLA_FFI_Metadata, struct_size);
SAME_MEMBER(Metadata, version, XLA_FFI_Metadata, api_version);
SAME_MEMBER(Metadata, traits, XLA_FFI_Metadata, traits);
#if XLA_FFI_API_MINOR >= 2
SAME_SIZE(Metadata, XLA_FFI_Metadata);
SAME_MEMBER(Metadata, state_type_id, XLA_FFI_Metadata, state_type_id);
#endif
SAME_SIZE(MetadataExtension, XLA_FFI_Metadata_Extension);
SAME_MEMBER(MetadataExtension, metadata, XLA_FFI_Metadata_Extension, metadata);

SAME_NUMBER(ErrorCode::kInvalidArgument, XLA_FFI_Error_Code_INVALID_ARGUMENT);
SAME_NUMBER(ErrorCode::kResourceExhausted, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
SAME_NUMBER(ErrorCode::kInternal, XLA_FFI_Error_Code_INTERNAL);
SAME_SIZE(ErrorCreateArgs, XLA_FFI_Error_Create_Args);
SAME_MEMBER(ErrorCreateArgs, extensions, XLA_FFI_Error_Create_Args, extension_start);
SAME_MEMBER(ErrorCreateArgs, message, XLA_FFI_Error_Create_Args, message);
SAME_MEMBER(ErrorCreateArgs, code, XLA_FFI_Error_Create_Args, errc);

SAME_MEMBER(Api, extensions, XLA_FFI_Api, extension_start);
SAME_MEMBER(Api, version, XLA_FFI_Api, api_version);
SAME_MEMBER(Api, internal, XLA_FFI_Api, internal_api);
SAME_MEMBER(Api, create_error, XLA_FFI_Api, XLA_FFI_Error_Create);

SAME_NUMBER(Type::kPred, XLA_FFI_DataType_PRED);
SAME_NUMBER(Type::kF8E5M2, XLA_FFI_DataType_F8E5M2);
SAME_NUMBER(Type::kF8E4M3FN, XLA_FFI_DataType_F8E4M3FN);
SAME_NUMBER(Type::kF8E8M0FNU, XLA_FFI_DataType_F8E8M0FNU);
SAME_NUMBER(Type::kS8, XLA_FFI_DataType_S8);
SAME_NUMBER(Type::kS16, XLA_FFI_DataType_S16);
SAME_NUMBER(Type::kS32, XLA_FFI_DataType_S32);
SAME_NUMBER(Type::kS64, XLA_FFI_DataType_S64);
SAME_NUMBER(Type::kU8, XLA_FFI_DataType_U8);
SAME_NUMBER(Type::kU16, XLA_FFI_DataType_U16);
SAME_NUMBER(Type::kU32, XLA_FFI_DataType_U32);
SAME_NUMBER(Type::kU64, XLA_FFI_DataType_U64);
SAME_NUMBER(Type::kF16, XLA_FFI_DataType_F16);
SAME_NUMBER(Type::kF32, XLA_FFI_DataType_F32);
SAME_NUMBER(Type::kF64, XLA_FFI_DataType_F64);
SAME_NUMBER(Type::kBF16, XLA_FFI_DataType_BF16);

SAME_SIZE(Buffer, XLA_FFI_Buffer);
SAME_MEMBER(Buffer, extensions, XLA_FFI_Buffer, extension_start);
SAME_MEMBER(Buffer, type, XLA_FFI_Buffer, dtype);
SAME_MEMBER(Buffer, data, XLA_FFI_Buffer, data);
SAME_MEMBER(Buffer, rank, XLA_FFI_Buffer, rank);
SAME_MEMBER(Buffer, dims, XLA_FFI_Buffer, dims);

SAME_SIZE(Buffers, XLA_FFI_Args);
SAME_MEMBER(Buffers, size, XLA_FFI_Args, size);
SAME_MEMBER(Buffers, kinds, XLA_FFI_Args, types);
SAME_MEMBER(Buffers, buffers, XLA_FFI_Args, args);
SAME_SIZE(Buffers, XLA_FFI_Rets);
SAME_MEMBER(Buffers, size, XLA_FFI_Rets, size);
SAME_MEMBER(Buffers, kinds, XLA_FFI_Rets, types);
SAME_MEMBER(Buffers, buffers, XLA_FFI_Rets, rets);
SAME_NUMBER(kBufferKind, XLA_FFI_ArgType_BUFFER);
SAME_NUMBER(kBufferKind, XLA_FFI_RetType_BUFFER);

SAME_SIZE(Name, XLA_FFI_ByteSpan);
SAME_MEMBER(Name, data, XLA_FFI_ByteSpan, ptr);
SAME_MEMBER(Name, size, XLA_FFI_ByteSpan, len);
SAME_SIZE(Scalar, XLA_FFI_Scalar);
SAME_MEMBER(Scalar, type, XLA_FFI_Scalar, dtype);
SAME_MEMBER(Scalar, value, XLA_FFI_Scalar, value);
SAME_SIZE(Attributes, XLA_FFI_Attrs);
SAME_MEMBER(Attributes, size, XLA_FFI_Attrs, size);
SAME_MEMBER(Attributes, kinds, XLA_FFI_Attrs, types);
SAME_MEMBER(Attributes, names, XLA_FFI_Attrs, names);
SAME_MEMBER(Attributes, values, XLA_FFI_Attrs, attrs);
SAME_NUMBER(kScalarKind, XLA_FFI_AttrType_SCALAR);

SAME_NUMBER(Stage::kExecute, XLA_FFI_ExecutionStage_EXECUTE);
static_assert(sizeof(xla::CallFrame) == XLA_FFI_CallFrame_STRUCT_SIZE);
SAME_MEMBER(CallFrame, struct_size, XLA_FFI_CallFrame, struct_size);
SAME_MEMBER(CallFrame, extensions, XLA_FFI_CallFrame, extension_start);
SAME_MEMBER(CallFrame, api, XLA_FFI_CallFrame, api);
SAME_MEMBER(CallFrame, context, XLA_FFI_CallFrame, ctx);
SAME_MEMBER(CallFrame, stage, XLA_FFI_CallFrame, stage);
SAME_MEMBER(CallFrame, operands, XLA_FFI_CallFrame, args);
SAME_MEMBER(CallFrame, results, XLA_FFI_CallFrame, rets);
SAME_MEMBER(CallFrame, attributes, XLA_FFI_CallFrame, attrs);
