#include "nn/device.h"

#include <doctest/doctest.h>

#include "support/errors.h"

using namespace elastify;

TEST_CASE("device: names are read, unknown and unsupported ones refused") {
  CHECK(nn::device_named("cpu").is_cpu());
  CHECK(test::message_of([&] { nn::device_named("tpu"); }) == "device: unknown device 'tpu'");
  CHECK(test::message_of([&] { nn::device_named("meta"); }) == "device: 'meta' is not supported");
}

TEST_CASE("device: processes of one machine take turns on its GPUs") {
  CHECK(nn::device_of_process(0) == "cuda:0");
}
