// The header's implementation as C++, beside its C one in another program: compiled, not linked.
#define ELASTIC_GGUF_IMPLEMENTATION
#include "elastify/elastic_gguf.h"
