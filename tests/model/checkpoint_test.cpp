#include "model/checkpoint.h"

#include <doctest/doctest.h>

#include "support/errors.h"
#include "support/temporary_directory.h"
#include "support/tensors.h"
#include "support/tiny_model.h"

using namespace elastify;
using namespace elastify::test;

TEST_CASE("checkpoint: a transformed one applies the change to every tensor loaded") {
  const TemporaryDirectory directory;
  write_tiny_hf_model(make_tiny_spec("llama"), directory / "model", 1);
  const Checkpoint source = Checkpoint::open(directory / "model");
  const Checkpoint doubled = source.transformed([](size_t, const HostTensor& tensor) {
    std::vector<float> values = values_of(tensor);
    for (float& value : values) value *= 2;
    return tensor_of(values, tensor.shape);
  });
  CHECK(values_of(doubled.load(2))[5] == 2 * values_of(source.load(2))[5]);
  CHECK(spec_hash(doubled.spec()) == spec_hash(source.spec()));
}

TEST_CASE("checkpoint: files of other kinds are refused with what they are") {
  const TemporaryDirectory directory;
  struct Case {
    std::string name, bytes, found;
  };
  const std::vector<Case> cases{
      {"model.safetensors", "x", "this is one file of a Hugging Face directory"},
      {"config.json", "{}", "this is one file of a Hugging Face directory"},
      {"model.pt", "PK\3\4zip", "this is a PyTorch pickle"},
      {"pytorch_model.bin", "PK\3\4zip", "this is a PyTorch pickle"},
      {"old.bin", "\x80\x02}q", "this is a PyTorch pickle"},
      {"model.pth", "anything", "this is a PyTorch file"},
      {"model.onnx", "\x08\x07", "this is an ONNX graph"},
      {"old.ggml", "tjgg....", "this is a ggml file from before GGUF"},
      {"profile.h5", "\x89HDF\r\n\x1a\n", "this is an HDF5 file"},
      {"model.tflite", "\x1c....", "not a known kind of model file"},
      {"empty", "", "the file is empty"},
      {"notes.txt", "hello", "not a known kind of model file"},
  };
  for (const Case& each : cases) {
    const fs::path path = directory / each.name;
    write_text(path, each.bytes);
    CHECK(
        message_of([&] { Checkpoint::open(path); }) ==
        path.string() + ": " + each.found +
            "; supported are Hugging Face directories with safetensors, .gguf files and llama2.c .bin files");
  }
  CHECK(message_of([&] { Checkpoint::open(directory / "absent"); }) ==
        (directory / "absent").string() + ": no such file or directory");
  CHECK(hint_of([] { Checkpoint::open("somebody/some-model"); }) ==
        "models are not downloaded; give the path of a local copy");
}
