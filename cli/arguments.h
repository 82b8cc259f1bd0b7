#pragma once

namespace elastify::cli {

/// The arguments that the process was started with.
extern char** arguments;

}  // namespace elastify::cli
