#pragma once

// For headers that declare `void declare(options::Options&, StageOptions&)`.

namespace elastify::options {

class Options;

}  // namespace elastify::options
