/* The header's implementation as strict C99, with nothing included before it. */
#define ELASTIC_GGUF_IMPLEMENTATION
#include "elastify/elastic_gguf.h"
