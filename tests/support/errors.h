#pragma once

#include <string>
#include <utility>

#include "base/error.h"

namespace elastify::test {

/// The message of the Error that `body` throws; "no error" if it throws none.
template <typename Body>
std::string message_of(Body&& body) {
  try {
    std::forward<Body>(body)();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

template <typename Body>
std::string hint_of(Body&& body) {
  try {
    std::forward<Body>(body)();
  } catch (const Error& error) {
    return error.hint();
  }
  return "no error";
}

}  // namespace elastify::test
