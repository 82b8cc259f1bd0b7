#pragma once

#include <c10/util/Exception.h>

#include <string>
#include <utility>

#include "base/error.h"

namespace elastify::nn {

/// Runs `body` and turns errors of LibTorch into Error, with their first line as message.
template <typename Body>
decltype(auto) with_torch_errors(Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    throw Error(fmt::format("LibTorch: {}", text.substr(0, text.find('\n'))));
  }
}

}  // namespace elastify::nn
