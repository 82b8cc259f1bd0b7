#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <string>

#include <fmt/format.h>

#include "base/file.h"
#include "support/temporary_directory.h"

namespace elastify::test {

struct Outcome {
  int status = 0;
  std::string out, err;
};

/// Runs `elastify ARGS` in a shell, after `before` ("ulimit -f 8;").
inline Outcome run_elastify(const std::string& args, const std::string& before = "") {
  const TemporaryDirectory directory;
  const std::string binary = (fs::path(ELASTIFY_BINARY_DIR) / "elastify").string();
  const std::string command = fmt::format("({} '{}' {}) >'{}/out' 2>'{}/err'", before, binary, args,
                                          directory.path().string(), directory.path().string());
  const int status = std::system(("bash -c \"" + command + "\"").c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
          read_text(directory.path() / "out"), read_text(directory.path() / "err")};
}

}  // namespace elastify::test
