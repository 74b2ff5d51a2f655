// The GGUF reader: it reads a correct file, and refuses a wrong one.
#include "engine/gguf/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <functional>

#include "testing/gguf_writer.h"

namespace riffle::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Writer = riffle::testing::GgufWriter;
using Bytes = std::vector<uint8_t>;

GgufFile Parse(const Bytes& bytes) { return GgufFile::Parse(bytes, "test.gguf"); }

std::string ErrorOf(const std::function<void()>& run) {
  try {
    run();
  } catch (const BadModel& error) {
    EXPECT_THAT(error.what(), HasSubstr("test.gguf: "));
    return error.what();
  }
  return "no error";
}
std::string ErrorOf(const Bytes& bytes) {
  return ErrorOf([&] { Parse(bytes); });
}

Writer AllTypes() {
  Writer writer;
  writer.Add<uint8_t>("u8", Writer::kU8, 200);
  writer.Add<int8_t>("i8", Writer::kI8, -7);
  writer.Add<uint16_t>("u16", Writer::kU16, 60000);
  writer.Add<int16_t>("i16", Writer::kI16, 300);
  writer.Add<uint32_t>("u32", Writer::kU32, 4000000000u);
  writer.Add<int32_t>("i32", Writer::kI32, 5);
  writer.Add<float>("f32", Writer::kF32, 1.5f);
  writer.Add<uint8_t>("bool", Writer::kBool, 1);
  writer.AddString("string", "text");
  writer.Add<uint64_t>("u64", Writer::kU64, uint64_t{1} << 40);
  writer.Add<uint64_t>("huge", Writer::kU64, ~uint64_t{0});
  writer.Add<int64_t>("i64", Writer::kI64, 9);
  writer.Add<double>("f64", Writer::kF64, 2.25);
  writer.AddArray<std::string>("strings", Writer::kString, {"a", "", "ccc"});
  writer.AddArray<float>("floats", Writer::kF32, {1, 2});
  writer.AddArray<int32_t>("ints", Writer::kI32, {-1, 7});
  writer.AddArray<float>("nothing", Writer::kF32, {});
  writer.AddRaw("nested", Writer::kArray,
                Writer::Raw<uint32_t>(Writer::kArray) + Writer::Raw<uint64_t>(2) +
                    Writer::Raw<uint32_t>(Writer::kU8) + Writer::Raw<uint64_t>(1) + "x" +
                    Writer::Raw<uint32_t>(Writer::kString) + Writer::Raw<uint64_t>(1) +
                    Writer::Text("y"));
  return writer;
}

// A file with two tensors: 64 bytes of F32 at offset 0, one Q8_0 block at offset 64.
Writer TwoTensors() {
  Writer writer = AllTypes();
  writer.AddTensor("a", {8, 2}, 0, 0);
  writer.AddTensor("b", {32}, 8, 64);
  return writer;
}
const std::string kData(64 + 34, 'd');

TEST(Gguf, ReadsEveryType) {
  const Bytes bytes = AllTypes().Finish();
  const GgufFile file = Parse(bytes);
  EXPECT_EQ(file.version(), 3);
  EXPECT_EQ(file.Keys().size(), 18u);
  EXPECT_EQ(file.Integer("u8"), 200);
  EXPECT_EQ(file.Integer("u16"), 60000);
  EXPECT_EQ(file.Integer("i16"), 300);
  EXPECT_EQ(file.Integer("u32"), 4000000000);
  EXPECT_EQ(file.Integer("i32"), 5);
  EXPECT_EQ(file.Integer("u64"), int64_t{1} << 40);
  EXPECT_EQ(file.Integer("i64"), 9);
  EXPECT_EQ(file.Float("f32"), 1.5);
  EXPECT_EQ(file.Float("f64"), 2.25);
  EXPECT_TRUE(file.Bool("bool"));
  EXPECT_EQ(file.String("string"), "text");
  EXPECT_THAT(file.Strings("strings"), ElementsAre("a", "", "ccc"));
  EXPECT_THAT(file.Floats("floats"), ElementsAre(1, 2));
  EXPECT_THAT(file.Integers("ints"), ElementsAre(-1, 7));
  EXPECT_THAT(file.IntegerOrIntegers("ints"), ElementsAre(-1, 7));
  EXPECT_THAT(file.IntegerOrIntegers("u8"), ElementsAre(200));
  EXPECT_TRUE(file.Floats("nothing").empty());
  EXPECT_TRUE(file.Has("nested"));
  EXPECT_FALSE(file.Has("absent"));
}

TEST(Gguf, NamesTheKeyOfAnotherType) {
  const Bytes bytes = AllTypes().Finish();
  const GgufFile file = Parse(bytes);
  EXPECT_THAT(ErrorOf([&] { file.Integer("absent"); }), HasSubstr("no metadata \"absent\""));
  EXPECT_THAT(ErrorOf([&] { file.Integer("string"); }), HasSubstr("\"string\" holds string, not"));
  EXPECT_THAT(ErrorOf([&] { file.Integer("i8"); }), HasSubstr("\"i8\" is -7, negative"));
  EXPECT_THAT(ErrorOf([&] { file.Integer("huge"); }), HasSubstr("18446744073709551615, too large"));
  EXPECT_THAT(ErrorOf([&] { file.Integer("ints"); }), HasSubstr("\"ints\" is an array"));
  EXPECT_THAT(ErrorOf([&] { file.Integers("u8"); }), HasSubstr("\"u8\" is not an array"));
  EXPECT_THAT(ErrorOf([&] { file.IntegerOrIntegers("absent"); }), HasSubstr("no metadata \"abs"));
  EXPECT_THAT(ErrorOf([&] { file.IntegerOrIntegers("string"); }), HasSubstr("holds string, not"));
  EXPECT_THAT(ErrorOf([&] { file.Float("u32"); }), HasSubstr("holds uint32, not float32"));
  EXPECT_THAT(ErrorOf([&] { file.Bool("u8"); }), HasSubstr("holds uint8, not boolean"));
  EXPECT_THAT(ErrorOf([&] { file.String("f64"); }), HasSubstr("holds float64, not string"));
  EXPECT_THAT(ErrorOf([&] { file.Strings("floats"); }), HasSubstr("holds float32, not string"));
  EXPECT_THAT(ErrorOf([&] { file.Floats("strings"); }), HasSubstr("holds string, not float32"));
  EXPECT_THAT(ErrorOf([&] { file.Integers("nested"); }), HasSubstr("holds array, not an integer"));
}

TEST(Gguf, PlacesTensors) {
  const Bytes bytes = TwoTensors().Finish(kData);
  const GgufFile file = Parse(bytes);
  ASSERT_EQ(file.tensors().size(), 2u);
  const int64_t shape_a[] = {8, 2}, shape_b[] = {32}, other[] = {16};
  const Tensor& a = file.Get("a", shape_a);
  EXPECT_EQ(a.bytes, 64);
  EXPECT_EQ(a.row_bytes(), 32);
  EXPECT_EQ(a.elements(), 16);
  EXPECT_EQ(a.data, bytes.data() + bytes.size() - kData.size());
  const Tensor& b = file.Get("b", shape_b);
  EXPECT_EQ(b.type, TensorType::kQ8_0);
  EXPECT_EQ(b.data + b.bytes, bytes.data() + bytes.size());
  EXPECT_EQ(file.Find("c"), nullptr);
  EXPECT_THAT(ErrorOf([&] { file.Get("c", other); }), HasSubstr("no tensor \"c\""));
  EXPECT_THAT(ErrorOf([&] { file.Get("b", other); }), HasSubstr("of shape [32], not [16]"));
}

TEST(Gguf, AnUnknownTensorTypeIsNamedWhenItIsWanted) {
  Writer writer;
  writer.AddTensor("odd", {32}, 23, 0);
  const Bytes bytes = writer.Finish(kData);
  const GgufFile file = Parse(bytes);
  EXPECT_EQ(file.Find("odd")->data, nullptr);
  const int64_t shape[] = {32};
  EXPECT_THAT(ErrorOf([&] { file.Get("odd", shape); }), HasSubstr("\"odd\" is of type IQ4_XS"));
}

// Some converters leave empty tensors behind. A file is refused only if a tensor is needed.
TEST(Gguf, TensorsOfNoDimensionsOrNoValuesAreRead) {
  Writer writer;
  writer.AddTensor("scalar", {}, 0, 0);
  writer.AddTensor("empty", {0}, 0, 32);
  writer.AddTensor("no_rows", {8, 0}, 0, 32);
  writer.AddTensor("no_columns", {int64_t{1} << 62, 8, 0}, 8, 64);
  writer.AddTensor("scalar_of_a_block", {}, 8, 64);
  const int64_t one[] = {1}, whole[] = {8, 2};
  EXPECT_THAT(ErrorOf(writer.Finish(kData)),
              HasSubstr("\"scalar_of_a_block\" of type Q8_0 and shape [] has rows that are no"));
  writer = Writer();
  writer.AddTensor("scalar", {}, 0, 64);
  writer.AddTensor("empty", {0}, 0, 32);
  writer.AddTensor("no_rows", {8, 0}, 0, 32);
  writer.AddTensor("no_columns", {int64_t{1} << 62, 8, 0}, 8, 64);
  writer.AddTensor("b", {8, 2}, 0, 0);
  const Bytes bytes = writer.Finish(kData);
  const GgufFile file = Parse(bytes);
  EXPECT_EQ(file.Find("scalar")->elements(), 1);
  EXPECT_EQ(file.Find("scalar")->bytes, 4);
  EXPECT_EQ(file.Find("scalar")->row_bytes(), 4);
  for (const char* name : {"empty", "no_rows", "no_columns"}) {
    EXPECT_EQ(file.Find(name)->elements(), 0) << name;
    EXPECT_EQ(file.Find(name)->bytes, 0) << name;
    EXPECT_THAT(ErrorOf([&] { file.Get(name, one); }), HasSubstr("not [1]")) << name;
  }
  EXPECT_THAT(ErrorOf([&] { file.Get("scalar", one); }), HasSubstr("of shape [], not [1]"));
  EXPECT_EQ(file.Get("b", whole).bytes, 64);
}

TEST(Gguf, EveryTruncationIsRefused) {
  const Bytes whole = TwoTensors().Finish(kData);
  Parse(whole);
  for (size_t size = 0; size < whole.size(); ++size) {
    const Bytes part(whole.begin(), whole.begin() + static_cast<int64_t>(size));
    EXPECT_NE(ErrorOf(part), "no error") << size << " bytes";
  }
}

// Whatever byte of the header is changed, the reader stays within the file (the sanitizers would
// show it): an accepted file is read to its last byte.
TEST(Gguf, NoChangedByteLeadsOutOfTheFile) {
  const Bytes whole = TwoTensors().Finish(kData);
  int accepted = 0;
  for (size_t at = 0; at < whole.size() - kData.size(); ++at) {
    for (const int change : {0x01, 0x80, 0xFF, 0x0C}) {
      Bytes changed = whole;
      changed[at] = static_cast<uint8_t>(changed[at] ^ change);
      try {
        const GgufFile file = Parse(changed);
        int sum = 0;
        for (const Tensor& tensor : file.tensors()) {
          for (int64_t i = 0; i < tensor.bytes; ++i) sum += tensor.data[i];
        }
        accepted += sum > 0;
      } catch (const BadModel&) {
      }
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(Gguf, RefusesOtherFiles) {
  EXPECT_THAT(ErrorOf(Bytes{'P', 'K', 3, 4, 0, 0}), HasSubstr("not a GGUF file"));
  Writer writer;
  writer.set_version(1);
  EXPECT_THAT(ErrorOf(writer.Finish()), HasSubstr("GGUF version 1"));
  writer.set_version(0x03000000);
  EXPECT_THAT(ErrorOf(writer.Finish()), HasSubstr("big-endian"));
  writer.set_version(2);
  EXPECT_EQ(ErrorOf(writer.Finish()), "no error");
}

TEST(Gguf, RefusesLyingCounts) {
  for (const uint64_t lie : {uint64_t{19}, uint64_t{1} << 32, ~uint64_t{0}}) {
    Writer keys = AllTypes();
    keys.set_keys(lie);
    EXPECT_THAT(ErrorOf(keys.Finish()), HasSubstr("metadata key 19"));
    Writer tensors = AllTypes();
    tensors.set_tensors(lie);
    EXPECT_THAT(ErrorOf(tensors.Finish()), HasSubstr("tensor 1"));
    Writer string;
    string.AddRaw("long", Writer::kString, Writer::Raw(lie) + "x");
    EXPECT_THAT(ErrorOf(string.Finish()), HasSubstr("\"long\""));
    for (const uint32_t type : {Writer::kU8, Writer::kF64, Writer::kString, Writer::kArray}) {
      Writer array;
      array.AddRaw("many", Writer::kArray, Writer::Raw(type) + Writer::Raw(lie) + "12345678");
      EXPECT_THAT(ErrorOf(array.Finish()), HasSubstr("\"many\""));
    }
  }
}

TEST(Gguf, RefusesBadMetadata) {
  Writer twice;
  twice.AddString("k", "a");
  twice.AddString("k", "b");
  EXPECT_THAT(ErrorOf(twice.Finish()), HasSubstr("\"k\" is there twice"));
  Writer type;
  type.AddRaw("k", 13, "");
  EXPECT_THAT(ErrorOf(type.Finish()), HasSubstr("\"k\" is of type 13"));
  Writer unprintable;
  unprintable.AddRaw("\x1b[31m", 13, "");
  EXPECT_THAT(ErrorOf(unprintable.Finish()), HasSubstr("\"\\x1b[31m\""));
  Writer deep;
  std::string arrays;
  for (int i = 0; i < 100; ++i) {
    arrays += Writer::Raw<uint32_t>(Writer::kArray) + Writer::Raw<uint64_t>(1);
  }
  deep.AddRaw("deep", Writer::kArray, arrays);
  EXPECT_THAT(ErrorOf(deep.Finish()), HasSubstr("\"deep\" is nested too deeply"));
  for (const uint32_t alignment : {0u, 1u, 4u, 24u, 1u << 31}) {
    Writer writer;
    writer.Add("general.alignment", Writer::kU32, alignment);
    writer.AddTensor("t", {4}, 0, 0);
    EXPECT_THAT(ErrorOf(writer.Finish(kData)), HasSubstr("\"general.alignment\" is"));
  }
}

TEST(Gguf, HonoursTheAlignment) {
  Writer writer;
  writer.Add<uint32_t>("general.alignment", Writer::kU32, 64);
  writer.AddTensor("t", {4}, 0, 64);
  const Bytes bytes = writer.Finish(std::string(80, 'x'), 64);
  EXPECT_EQ(Parse(bytes).Find("t")->data, bytes.data() + bytes.size() - 16);
}

TEST(Gguf, RefusesLyingTensors) {
  const auto error = [](const std::vector<int64_t>& shape, uint32_t type, uint64_t offset) {
    Writer writer;
    writer.AddTensor("t", shape, type, offset);
    return ErrorOf(writer.Finish(kData));
  };
  EXPECT_EQ(error({8, 2}, 0, 32), "no error");
  EXPECT_THAT(error({8, 2}, 0, 64), HasSubstr("needs 64 bytes, but the data has 98"));
  EXPECT_THAT(error({8, 2}, 0, 8), HasSubstr("no multiple of the alignment 32"));
  EXPECT_THAT(error({8, 2}, 0, ~uint64_t{31}), HasSubstr("the file is truncated or corrupt"));
  EXPECT_THAT(error({33}, 8, 0), HasSubstr("no multiple of 32"));
  EXPECT_THAT(error({1, 1, 1, 1, 1}, 0, 0), HasSubstr("has 5 dimensions"));
  EXPECT_THAT(error({4, -1}, 0, 0), HasSubstr("has a dimension of -1"));
  const int64_t big = int64_t{1} << 32;
  EXPECT_THAT(error({big, big}, 0, 0), HasSubstr("more than 2^63"));
  EXPECT_THAT(error({big, big, big, big}, 0, 0), HasSubstr("more than 2^63"));
  EXPECT_THAT(error({INT64_MAX}, 0, 0), HasSubstr("more than 2^63"));
  EXPECT_THAT(error({INT64_MAX - 31}, 8, 0), HasSubstr("more than 2^63"));
  Writer twice;
  twice.AddTensor("t", {4}, 0, 0);
  twice.AddTensor("t", {4}, 0, 0);
  EXPECT_THAT(ErrorOf(twice.Finish(kData)), HasSubstr("tensor \"t\" is there twice"));
  const auto overlap = [](uint64_t offset) {
    Writer writer;
    writer.AddTensor("first", {8, 2}, 0, offset);
    writer.AddTensor("empty", {0}, 0, 32);
    writer.AddTensor("second", {9}, 0, 32);
    return ErrorOf(writer.Finish(std::string(200, 'x')));
  };
  EXPECT_THAT(overlap(0), HasSubstr("tensor \"second\" overlaps tensor \"first\""));
  EXPECT_THAT(overlap(32), HasSubstr("overlaps"));
  EXPECT_THAT(overlap(64), HasSubstr("tensor \"first\" overlaps tensor \"second\""));
  EXPECT_EQ(overlap(96), "no error");
}

TEST(Gguf, OpensFilesOnly) {
  const std::string path = ::testing::TempDir() + "riffle_test.gguf";
  const auto error = [&] { return ErrorOf([&] { GgufFile::Open(path); }); };
  ::unlink(path.c_str());
  EXPECT_THAT(error(), HasSubstr("cannot be opened: No such file"));
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(error(), HasSubstr("not a regular file"));
  ::unlink(path.c_str());
  std::ofstream(path).close();
  EXPECT_THAT(error(), HasSubstr("is empty"));
  const Bytes bytes = TwoTensors().Finish(kData);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<int64_t>(bytes.size()));
  GgufFile file = GgufFile::Open(path);
  const GgufFile copy = file;
  file = Parse(bytes);
  EXPECT_EQ(copy.Find("b")->data[33], 'd');  // still mapped
  ::unlink(path.c_str());
}

}  // namespace
}  // namespace riffle::engine
