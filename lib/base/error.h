#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace elastify {

/// Every failure of the library is reported as an Error. The message is one line, in lower case, without a
/// full stop. It names the place first (file, tensor, key), then the expected and the found value. The hint
/// says how to get past the error.
class Error : public std::runtime_error {
 public:
  explicit Error(std::string message, std::string hint = {})
      : std::runtime_error(std::move(message)), hint_(std::move(hint)) {}

  const std::string& hint() const { return hint_; }

  /// The same error with `place: ` in front, for callers that know more than the callee.
  Error within(std::string_view place) const { return Error(fmt::format("{}: {}", place, what()), hint_); }

 private:
  std::string hint_;
};

/// A mistake in flags or configuration rather than in data; the CLI exits with 2 instead of 1.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// A signal asked the program to stop; outputs are left as they were before the command.
class Interrupted : public Error {
 public:
  explicit Interrupted(std::string message = "interrupted; nothing was left half-written",
                       std::string hint = {})
      : Error(std::move(message), std::move(hint)) {}
};

/// The operating system refused (disk full, no permission, no memory). Such an error says nothing about the
/// data.
class SystemError : public Error {
 public:
  using Error::Error;
};

/// Throws Error with a formatted message.
template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

/// Runs `body`; an Error that leaves it gets `place: ` in front.
template <typename Body>
decltype(auto) with_context(std::string_view place, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const UsageError& error) {
    throw UsageError(fmt::format("{}: {}", place, error.what()), error.hint());
  } catch (const Interrupted&) {
    throw;
  } catch (const SystemError& error) {
    throw SystemError(fmt::format("{}: {}", place, error.what()), error.hint());
  } catch (const Error& error) {
    throw error.within(place);
  }
}

}  // namespace elastify
