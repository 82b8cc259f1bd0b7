// The header's implementation as C++. It is compiled but not linked, because a program may have only one.
#define ELASTIC_GGUF_IMPLEMENTATION
#include "elastify/elastic_gguf.h"
