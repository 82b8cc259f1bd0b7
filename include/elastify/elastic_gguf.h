/* Levels of a packed file (model.gguf of `elastify export --packed`) without a copy. The file is mapped once.
 * For every level and tensor there are a pointer into the map, and ne and nb as ggml takes them, for
 * ggml_view_2d() or a tensor of your own. To switch levels, use another table. C99 and POSIX mmap; also C++.
 *
 * In one source file:
 *   #define ELASTIC_GGUF_IMPLEMENTATION
 *   #include "elastify/elastic_gguf.h"
 *
 *   char error[256];
 *   elastic_gguf *file = elastic_gguf_open("model.gguf", error, sizeof error);
 *   const elastic_level *level = elastic_gguf_level(file, elastic_gguf_find_level(file, 0.5));
 *   for (size_t i = 0; i < level->n_tensors; ++i)
 *     use(level->tensors[i].name, level->tensors[i].data, level->tensors[i].ne, level->tensors[i].nb);
 *   elastic_gguf_close(file);
 *
 * A level's table has no entries for parts that the level leaves out (the attention of a layer, or a whole
 * layer). Opening checks every table, so that nothing is read beyond a damaged file's end. It does not check
 * hashes; `elastify verify` does. After opening nothing is written, so threads may share the file. Layout of
 * the file: docs/formats.md. */
#ifndef ELASTIC_GGUF_H
#define ELASTIC_GGUF_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A tensor at a level. It is a prefix of the full model's tensor and has that tensor's `nb`: rows are nb[1]
 * bytes apart, and only the first ne[0] elements of each belong to the level. With `own`, the tensor belongs
 * to this level alone and is contiguous. */
typedef struct elastic_tensor {
  const char* name; /* "blk.0.ffn_down.weight" */
  const void* data; /* in the map */
  uint32_t type;    /* enum ggml_type */
  int own;          /* 1: belongs to this level alone (of its repairs: biases, weights, norms) */
  int n_dims;       /* 1 or 2 */
  int64_t ne[4];    /* elements, innermost first; 1 beyond n_dims */
  size_t nb[4];     /* bytes from one element (block), row, ... to the next */
} elastic_tensor;

typedef struct elastic_level {
  const char* name;                  /* "level-050.gguf": the name of the file that `elastify slice` writes */
  double nominal;                    /* 0.5; 1: the full model */
  double decoder_ratio, total_ratio; /* share of weights kept: in the layers, in the whole model */
  const char* architecture;          /* of the level's own file: "deci" */
  int32_t n_layers;
  const int32_t* kv_groups; /* [n_layers] KV heads; 0: the layer has no attention */
  const int32_t* d_ff;      /* [n_layers] neurons; 0: the layer has no MLP */
  size_t n_tensors;
  const elastic_tensor* tensors;
  const void* adapter;     /* a complete GGUF file with the level's LoRA matrices; NULL: none */
  uint64_t adapter_offset; /* in the file, for llama_adapter_lora_init_from_file_ptr() */
  uint64_t adapter_bytes;
  /* Rows of q and k in the level's own tensors and its adapter, which are as in its own file: 1: rotated
   * pairs side by side, 0: halves of a head apart. */
  int own_rope_interleaved;
  void* texts; /* for elastic_gguf_close() */
} elastic_level;

typedef struct elastic_gguf elastic_gguf;

/* NULL if the file cannot be read; `error` (may be NULL) then says what was expected and what was found. */
elastic_gguf* elastic_gguf_open(const char* path, char* error, size_t error_size);
void elastic_gguf_close(elastic_gguf* file); /* may be NULL; frees levels and tensors */

size_t elastic_gguf_n_levels(const elastic_gguf* file); /* narrowest first, full model last */
const elastic_level* elastic_gguf_level(const elastic_gguf* file, size_t index); /* NULL beyond the last */
/* The widest level that is not wider than `nominal`; the narrowest if there is none. */
size_t elastic_gguf_find_level(const elastic_gguf* file, double nominal);
const elastic_tensor* elastic_gguf_find_tensor(const elastic_level* level, const char* name); /* NULL: none */

/* Row order of the shared q and k. 1: rotated pairs are side by side (LLAMA_ROPE_TYPE_NORM); 0: they are half
 * a head apart (NEOX). It is the same at all levels, also if the levels' own files have other architectures.
 */
int elastic_gguf_rope_interleaved(const elastic_gguf* file);

/* Reads a scalar key of the full model ("llama.embedding_length"). Returns 1 if the key exists and is a
 * number, else 0. */
int elastic_gguf_number(const elastic_gguf* file, const char* key, double* value);

/* The mapped file, for madvise(), mlock() or buffers of a backend. */
const void* elastic_gguf_base(const elastic_gguf* file, size_t* size);

#ifdef __cplusplus
}
#endif
#endif /* ELASTIC_GGUF_H */

#ifdef ELASTIC_GGUF_IMPLEMENTATION
#ifndef ELASTIC_GGUF_IMPLEMENTED
#define ELASTIC_GGUF_IMPLEMENTED

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ELASTIC_MAX_LAYERS = 1024, ELASTIC_MAX_LEVELS = 64, ELASTIC_MAX_TENSORS = 1 << 16 };
enum { ELASTIC_STRING = 8, ELASTIC_ARRAY = 9, ELASTIC_N_TYPES = 13 };

typedef struct elastic_text {
  const char* data; /* not terminated */
  uint64_t size;
} elastic_text;

typedef struct elastic_key {
  elastic_text name;
  uint32_t type; /* of the value, or of an array's elements */
  int is_array;
  uint64_t count;      /* elements; 1 for scalars */
  const uint8_t* data; /* of the first element */
} elastic_key;

typedef struct elastic_record {
  elastic_text name;
  uint32_t type;
  int n_dims;
  int64_t ne[4];
  const uint8_t* data;
} elastic_record;

/* One parsed GGUF: the model, or a part of a level. */
typedef struct elastic_parsed {
  const uint8_t* base;
  uint64_t size, end; /* of the file; of the tensors' data */
  size_t n_keys, n_tensors;
  elastic_key* keys;
  elastic_record* tensors;
} elastic_parsed;

struct elastic_gguf {
  const uint8_t* base;
  size_t size;
  elastic_parsed model;
  int interleaved;
  size_t n_levels;
  elastic_level* levels;
  int32_t* widths; /* KV groups and neurons of all levels */
};

typedef struct elastic_reader {
  const uint8_t* base;
  uint64_t size, at;
  char* error;
  size_t error_size;
  int failed;
} elastic_reader;

static int elastic_fail(elastic_reader* reader, const char* format, ...) {
  if (!reader->failed && reader->error != NULL && reader->error_size > 0) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reader->error, reader->error_size, format, arguments);
    va_end(arguments);
  }
  reader->failed = 1;
  return 0;
}

/* Number of characters to print in messages. */
static int elastic_shown(elastic_text text) {
  return text.size < 64 ? (int)text.size : 64;
}

static const uint8_t* elastic_take(elastic_reader* reader, uint64_t size) {
  const uint8_t* bytes;
  if (reader->failed) return NULL;
  if (size > reader->size - reader->at) {
    elastic_fail(reader, "needs %llu bytes from byte %llu on, but there are %llu", (unsigned long long)size,
                 (unsigned long long)reader->at, (unsigned long long)reader->size);
    return NULL;
  }
  bytes = reader->base + reader->at;
  reader->at += size;
  return bytes;
}
static uint64_t elastic_unsigned(elastic_reader* reader, size_t size) {
  uint64_t value = 0;
  const uint8_t* bytes = elastic_take(reader, size);
  if (bytes != NULL) memcpy(&value, bytes, size);
  return value;
}
static elastic_text elastic_read_text(elastic_reader* reader) {
  elastic_text text;
  text.size = elastic_unsigned(reader, 8);
  text.data = (const char*)elastic_take(reader, text.size);
  if (text.data == NULL) text.size = 0;
  return text;
}

static int elastic_compare(elastic_text a, elastic_text b) {
  const uint64_t shorter = a.size < b.size ? a.size : b.size;
  const int order = shorter == 0 ? 0 : memcmp(a.data, b.data, (size_t)shorter);
  return order != 0 ? order : a.size < b.size ? -1 : a.size > b.size;
}
static int elastic_is(elastic_text text, const char* expected) {
  const elastic_text other = {expected, strlen(expected)};
  return elastic_compare(text, other) == 0;
}

/* Elements and bytes of a block; returns 0 for unknown types. Source: ggml-common.h */
static int elastic_block(uint32_t type, int64_t* elements, size_t* bytes) {
  static const uint16_t blocks[43][2] = {
      {1, 4},    {1, 2},    {32, 18},   {32, 20},   {0, 0},     {0, 0},     {32, 22},   {32, 24},  {32, 34},
      {32, 36},  {256, 84}, {256, 110}, {256, 144}, {256, 176}, {256, 210}, {256, 292}, {256, 66}, {256, 74},
      {256, 98}, {256, 50}, {32, 18},   {256, 110}, {256, 82},  {256, 136}, {1, 1},     {1, 2},    {1, 4},
      {1, 8},    {1, 8},    {256, 56},  {1, 2},     {0, 0},     {0, 0},     {0, 0},     {256, 54}, {256, 66},
      {0, 0},    {0, 0},    {0, 0},     {32, 17},   {64, 36},   {128, 18},  {64, 18}};
  if (type >= 43 || blocks[type][0] == 0) return 0;
  *elements = blocks[type][0];
  *bytes = blocks[type][1];
  return 1;
}

/* Bytes of a value of fixed size; 0 for strings and arrays. */
static size_t elastic_value_size(uint32_t type) {
  static const uint8_t sizes[ELASTIC_N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return type < ELASTIC_N_TYPES ? sizes[type] : 0;
}

static void elastic_read_key(elastic_reader* reader, elastic_key* key) {
  uint64_t size, i;
  key->name = elastic_read_text(reader);
  key->type = (uint32_t)elastic_unsigned(reader, 4);
  key->is_array = key->type == ELASTIC_ARRAY;
  if (key->is_array) key->type = (uint32_t)elastic_unsigned(reader, 4);
  key->count = key->is_array ? elastic_unsigned(reader, 8) : 1;
  key->data = reader->base + reader->at;
  size = elastic_value_size(key->type);
  if (key->type == ELASTIC_STRING) {
    for (i = 0; i < key->count && !reader->failed; ++i) elastic_read_text(reader);
  } else if (size == 0 || key->count > (reader->size - reader->at) / size) {
    elastic_fail(reader, "key %.*s: no room for %llu values of type %lu", elastic_shown(key->name),
                 key->name.data, (unsigned long long)key->count, (unsigned long)key->type);
  } else {
    elastic_take(reader, key->count * size);
  }
}

/* Bytes of a tensor; 0 if its type or shape is invalid, or if they are more than `most`. */
static uint64_t elastic_tensor_bytes(const elastic_record* tensor, uint64_t most) {
  int64_t elements;
  size_t bytes;
  uint64_t size;
  int i;
  if (!elastic_block(tensor->type, &elements, &bytes) || tensor->ne[0] % elements != 0) return 0;
  if ((uint64_t)(tensor->ne[0] / elements) > most / bytes) return 0;
  size = (uint64_t)(tensor->ne[0] / elements) * bytes;
  for (i = 1; i < 4; ++i) {
    if ((uint64_t)tensor->ne[i] > most / size) return 0;
    size *= (uint64_t)tensor->ne[i];
  }
  return size;
}

static uint64_t elastic_padded(uint64_t size, uint64_t alignment) {
  return (size + alignment - 1) / alignment * alignment;
}

static const elastic_key* elastic_find_key(const elastic_parsed* file, const char* name) {
  size_t i = 0;
  while (i < file->n_keys && !elastic_is(file->keys[i].name, name)) ++i;
  return i < file->n_keys ? &file->keys[i] : NULL;
}

static int elastic_read_number(const elastic_key* key, double* value) {
  static const char kinds[ELASTIC_N_TYPES + 1] = "uiuiuifu--uif";
  uint64_t bits = 0;
  float f32;
  size_t size, unused;
  if (key == NULL || key->is_array || elastic_value_size(key->type) == 0) return 0;
  size = elastic_value_size(key->type);
  unused = 64 - 8 * size;
  memcpy(&bits, key->data, size);
  if (key->type == 6) {
    memcpy(&f32, key->data, sizeof f32);
    *value = (double)f32;
  } else if (key->type == 12) {
    memcpy(value, key->data, sizeof *value);
  } else {
    *value = kinds[key->type] == 'i' ? (double)((int64_t)(bits << unused) >> unused) : (double)bits;
  }
  return 1;
}

static uint64_t elastic_read_record(elastic_reader* reader, elastic_record* tensor) {
  int i;
  tensor->name = elastic_read_text(reader);
  tensor->n_dims = (int)elastic_unsigned(reader, 4);
  if (tensor->n_dims < 1 || tensor->n_dims > 4)
    elastic_fail(reader, "tensor %.*s: expected 1 to 4 dimensions, got %d", elastic_shown(tensor->name),
                 tensor->name.data, tensor->n_dims);
  for (i = 0; i < 4; ++i) {
    tensor->ne[i] = !reader->failed && i < tensor->n_dims ? (int64_t)elastic_unsigned(reader, 8) : 1;
    if (tensor->ne[i] < 1) elastic_fail(reader, "a dimension is out of range");
  }
  tensor->type = (uint32_t)elastic_unsigned(reader, 4);
  return elastic_unsigned(reader, 8);
}

/* Parses a GGUF file in memory. Free its tables with elastic_free_parsed(), also after a failure. */
static int elastic_parse(elastic_reader* reader, elastic_parsed* file) {
  uint64_t n_tensors, n_keys, alignment = 32, running = 0, data_start, i;
  double stated;
  const uint8_t* magic = elastic_take(reader, 4);
  uint32_t version;
  memset(file, 0, sizeof *file);
  file->base = reader->base;
  file->size = reader->size;
  if (magic == NULL || memcmp(magic, "GGUF", 4) != 0) return elastic_fail(reader, "not a GGUF file");
  version = (uint32_t)elastic_unsigned(reader, 4);
  if (version != 2 && version != 3)
    return elastic_fail(reader, "expected GGUF version 2 or 3, got %lu", (unsigned long)version);
  n_tensors = elastic_unsigned(reader, 8);
  n_keys = elastic_unsigned(reader, 8);
  /* The shortest record of a key has 13 bytes, that of a tensor 32. */
  if (reader->failed || n_keys > reader->size / 13 || n_tensors > reader->size / 32 ||
      n_tensors > (uint64_t)ELASTIC_MAX_TENSORS)
    return elastic_fail(reader, "%llu keys and %llu tensors do not fit into the file",
                        (unsigned long long)n_keys, (unsigned long long)n_tensors);
  file->keys = (elastic_key*)calloc((size_t)n_keys + 1, sizeof *file->keys);
  file->tensors = (elastic_record*)calloc((size_t)n_tensors + 1, sizeof *file->tensors);
  if (file->keys == NULL || file->tensors == NULL) return elastic_fail(reader, "out of memory");
  for (i = 0; i < n_keys && !reader->failed; ++i) elastic_read_key(reader, &file->keys[i]);
  if (reader->failed) return 0;
  file->n_keys = (size_t)n_keys;
  if (elastic_read_number(elastic_find_key(file, "general.alignment"), &stated)) {
    alignment = stated >= 1 && stated <= 1048576 ? (uint64_t)stated : 0;
    if (alignment < 8 || (alignment & (alignment - 1)) != 0)
      return elastic_fail(reader, "expected an alignment that is a power of two, got %g", stated);
  }
  for (i = 0; i < n_tensors; ++i) {
    elastic_record* tensor = &file->tensors[i];
    const uint64_t offset = elastic_read_record(reader, tensor);
    uint64_t size;
    if (reader->failed) return 0;
    size = elastic_tensor_bytes(tensor, reader->size);
    if (size == 0 || offset != running || running > reader->size - size)
      return elastic_fail(reader, "tensor %.*s: its type, shape or offset cannot be right",
                          elastic_shown(tensor->name), tensor->name.data);
    tensor->data = reader->base + running; /* the start of the data is added below */
    running = elastic_padded(running + size, alignment);
  }
  data_start = elastic_padded(reader->at, alignment);
  for (i = 0; i < n_tensors; ++i) {
    elastic_record* tensor = &file->tensors[i];
    const uint64_t begin = data_start + (uint64_t)(tensor->data - reader->base);
    if (begin > reader->size || elastic_tensor_bytes(tensor, reader->size) > reader->size - begin)
      return elastic_fail(reader, "tensor %.*s: ends after the file's end: it is cut off",
                          elastic_shown(tensor->name), tensor->name.data);
    tensor->data = reader->base + begin;
  }
  file->n_tensors = (size_t)n_tensors;
  file->end = data_start + running;
  return 1;
}

static void elastic_free_parsed(elastic_parsed* file) {
  free(file->keys);
  free(file->tensors);
}

/* Finds an array of this type with `count` elements, or with any number of them if `count` is 0. */
static const elastic_key* elastic_array(elastic_reader* reader, const elastic_parsed* file, const char* name,
                                        uint32_t type, uint64_t count) {
  const elastic_key* key = elastic_find_key(file, name);
  if (key != NULL && key->is_array && key->type == type && (count == 0 || key->count == count)) return key;
  elastic_fail(reader, "key %s: expected an array of type %lu with %llu elements, got %llu", name,
               (unsigned long)type, (unsigned long long)count,
               (unsigned long long)(key == NULL ? 0 : key->count));
  return NULL;
}

/* An element of an array of numbers. If there is none it is -2, which no valid element is. */
static double elastic_at(const elastic_key* key, uint64_t i) {
  elastic_key element;
  double value = 0;
  if (key == NULL || i >= key->count) return (-2.0);
  element = *key;
  element.is_array = 0;
  element.data += i * elastic_value_size(key->type);
  return elastic_read_number(&element, &value) ? value : (-2.0);
}

/* The next string of an array. Its bounds were checked when the key was read. */
static elastic_text elastic_next_text(const uint8_t** at) {
  elastic_text text;
  memcpy(&text.size, *at, sizeof text.size);
  text.data = (const char*)*at + sizeof text.size;
  *at += sizeof text.size + text.size;
  return text;
}

static elastic_text elastic_text_at(const elastic_key* key, uint64_t i) {
  const uint8_t* at = key->data;
  elastic_text text = elastic_next_text(&at);
  while (i-- > 0) text = elastic_next_text(&at);
  return text;
}

/* The state that building the levels' tables needs. */
typedef struct elastic_builder {
  elastic_reader* reader;
  elastic_gguf* file;
  uint64_t n_levels, n_layers;
  const elastic_record** sorted; /* the model's tensors by name */
} elastic_builder;

static int elastic_compare_records(const void* a, const void* b) {
  return elastic_compare((*(const elastic_record* const*)a)->name, (*(const elastic_record* const*)b)->name);
}

static const elastic_record* elastic_find_stored(const elastic_builder* builder, elastic_text name) {
  elastic_record wanted;
  const elastic_record *key = &wanted, *const * found;
  memset(&wanted, 0, sizeof wanted);
  wanted.name = name;
  found = (const elastic_record* const*)bsearch(&key, builder->sorted, builder->file->model.n_tensors,
                                                sizeof key, elastic_compare_records);
  return found == NULL ? NULL : *found;
}

static const elastic_record* elastic_find_record(const elastic_parsed* file, elastic_text name) {
  size_t i = 0;
  while (i < file->n_tensors && elastic_compare(file->tensors[i].name, name) != 0) ++i;
  return i < file->n_tensors ? &file->tensors[i] : NULL;
}

/* Appends a copy of the string, with a final zero, to the level's strings. */
static const char* elastic_copy_text(char** next, elastic_text text) {
  char* copy = *next;
  if (text.size > 0) memcpy(copy, text.data, (size_t)text.size);
  *next += text.size + 1; /* zeroed before */
  return copy;
}

static int elastic_add_tensor(elastic_builder* builder, elastic_tensor* tensor, elastic_text name,
                              const elastic_record* stored, double columns, double rows) {
  int64_t elements;
  size_t bytes;
  const int n_dims = rows == 0 ? 1 : 2;
  if (stored == NULL || stored->n_dims != n_dims || !elastic_block(stored->type, &elements, &bytes) ||
      !(columns >= 1 && columns <= (double)stored->ne[0] && rows >= 0 && rows <= (double)stored->ne[1]) ||
      (int64_t)columns % elements != 0)
    return elastic_fail(builder->reader, "tensor %.*s: no part of %g x %g of it", elastic_shown(name),
                        name.data, columns, rows);
  tensor->data = stored->data;
  tensor->type = stored->type;
  tensor->n_dims = n_dims;
  tensor->ne[0] = (int64_t)columns;
  tensor->ne[1] = n_dims == 1 ? 1 : (int64_t)rows;
  tensor->ne[2] = tensor->ne[3] = 1;
  tensor->nb[0] = bytes;
  tensor->nb[1] = (size_t)(stored->ne[0] / elements) * bytes;
  tensor->nb[2] = tensor->nb[3] = tensor->nb[1] * (size_t)tensor->ne[1];
  return 1;
}

/* Builds the tensors of a level from its part, or all tensors of the model if it has no part. `texts` is the
 * room for the level's other strings. Returns where these go. */
static char* elastic_build_tensors(elastic_builder* builder, elastic_level* level, const elastic_parsed* part,
                                   uint64_t texts) {
  const elastic_parsed* model = &builder->file->model;
  const elastic_key *names = NULL, *shapes = NULL;
  elastic_tensor* tensors;
  char* next;
  const uint8_t* at = NULL;
  uint64_t n = model->n_tensors, i;
  if (part->base != NULL) {
    names = elastic_array(builder->reader, part, "elastify.part.tensors", ELASTIC_STRING, 0);
    if (names == NULL) return NULL;
    n = names->count;
    shapes = elastic_array(builder->reader, part, "elastify.part.shapes", 11, 2 * n);
    if (shapes == NULL) return NULL;
    at = names->data;
  }
  for (i = 0; i < n; ++i)
    texts += (at != NULL ? elastic_next_text(&at).size : model->tensors[i].name.size) + 1;
  level->tensors = tensors = (elastic_tensor*)calloc((size_t)n + 1, sizeof *tensors);
  level->texts = next = (char*)calloc((size_t)texts, 1);
  if (tensors == NULL || next == NULL || n == 0) {
    elastic_fail(builder->reader, "a level of %llu tensors does not fit into memory", (unsigned long long)n);
    return NULL;
  }
  level->n_tensors = (size_t)n;
  at = names != NULL ? names->data : NULL;
  for (i = 0; i < n; ++i) {
    const elastic_text name = at != NULL ? elastic_next_text(&at) : model->tensors[i].name;
    const elastic_record* own = at != NULL ? elastic_find_record(part, name) : NULL;
    const elastic_record* stored = own != NULL ? own : elastic_find_stored(builder, name);
    tensors[i].name = elastic_copy_text(&next, name);
    tensors[i].own = own != NULL;
    if (!elastic_add_tensor(builder, &tensors[i], name, stored,
                            shapes != NULL ? elastic_at(shapes, 2 * i) : (double)stored->ne[0],
                            shapes != NULL       ? elastic_at(shapes, 2 * i + 1)
                            : stored->n_dims > 1 ? (double)stored->ne[1]
                                                 : 0))
      return NULL;
  }
  return next;
}

static const elastic_key* elastic_table(elastic_builder* builder, const char* name, uint32_t type,
                                        uint64_t count) {
  return elastic_array(builder->reader, &builder->file->model, name, type, count);
}

/* Finds an embedded file. It must lie behind the model's tensors. */
static int elastic_embedded(elastic_builder* builder, double index, uint64_t* offset, uint64_t* bytes) {
  const elastic_gguf* file = builder->file;
  const uint64_t i = index >= 0 ? (uint64_t)index : UINT64_MAX;
  const double at = elastic_at(elastic_table(builder, "elastify.packed.file_offsets", 10, 0), i);
  const double size = elastic_at(elastic_table(builder, "elastify.packed.file_bytes", 10, 0), i);
  if (!(at >= (double)file->model.end && size >= 0 && at + size <= (double)file->size))
    return elastic_fail(builder->reader, "embedded file %g: %g bytes from byte %g on are not in the file",
                        index, size, at);
  *offset = (uint64_t)at;
  *bytes = (uint64_t)size;
  return *offset % 32 == 0 ||
         elastic_fail(builder->reader, "embedded file %g: not at a multiple of 32", index);
}

/* A key of a text; empty where there is none. */
static elastic_text elastic_find_text(const elastic_parsed* file, const char* name) {
  const elastic_key* key = elastic_find_key(file, name);
  const elastic_text none = {"", 0};
  return key != NULL && !key->is_array && key->type == ELASTIC_STRING ? elastic_text_at(key, 0) : none;
}

static int elastic_build_level(elastic_builder* builder, uint64_t i) {
  elastic_gguf* file = builder->file;
  elastic_level* level = &file->levels[i];
  const uint64_t n = builder->n_levels;
  const elastic_key* names = elastic_table(builder, "elastify.packed.names", ELASTIC_STRING, n);
  const elastic_key* families = elastic_table(builder, "elastify.packed.architectures", ELASTIC_STRING, n);
  const double adapter = elastic_at(elastic_table(builder, "elastify.packed.adapters", 5, n), i);
  const double part_index = elastic_at(elastic_table(builder, "elastify.packed.parts", 5, n), i);
  elastic_text name, architecture;
  elastic_reader inner = *builder->reader;
  elastic_parsed part; /* empty for the full model */
  uint64_t offset;
  char* next = NULL;
  level->nominal = elastic_at(elastic_table(builder, "elastify.packed.levels", 12, n), i);
  level->decoder_ratio = elastic_at(elastic_table(builder, "elastify.packed.decoder_ratios", 12, n), i);
  level->total_ratio = elastic_at(elastic_table(builder, "elastify.packed.total_ratios", 12, n), i);
  if (builder->reader->failed) return 0;
  if (!(level->nominal > (i > 0 ? file->levels[i - 1].nominal : 0)))
    return elastic_fail(builder->reader, "level %g: expected numbers that rise from above 0", level->nominal);
  level->n_layers = (int32_t)builder->n_layers;
  level->kv_groups = file->widths + i * builder->n_layers;
  level->d_ff = file->widths + (n + i) * builder->n_layers;
  if (adapter != -1) {
    if (!elastic_embedded(builder, adapter, &level->adapter_offset, &level->adapter_bytes)) return 0;
    level->adapter = file->base + level->adapter_offset;
  }
  name = elastic_text_at(names, i);
  architecture = elastic_text_at(families, i);
  memset(&part, 0, sizeof part);
  level->own_rope_interleaved = file->interleaved;
  if (part_index != -1) {
    if (!elastic_embedded(builder, part_index, &offset, &inner.size)) return 0;
    inner.base = file->base + offset;
    inner.at = 0;
    elastic_parse(&inner, &part);
    builder->reader->failed = inner.failed;
    level->own_rope_interleaved = elastic_is(elastic_find_text(&part, "elastify.part.rope"), "interleaved");
  }
  if (!inner.failed) next = elastic_build_tensors(builder, level, &part, name.size + architecture.size + 2);
  elastic_free_parsed(&part);
  if (next == NULL) return 0;
  level->architecture = elastic_copy_text(&next, architecture);
  level->name = elastic_copy_text(&next, name);
  return 1;
}

static int elastic_build(elastic_reader* reader, elastic_gguf* file) {
  elastic_builder builder;
  const elastic_text architecture = elastic_find_text(&file->model, "general.architecture");
  const elastic_key *levels, *groups, *d_ff;
  char key[96];
  double layers = 0, version = 0;
  uint64_t count, i;
  int done;
  if (!elastic_read_number(elastic_find_key(&file->model, "elastify.packed.version"), &version) ||
      version != 1)
    return elastic_fail(reader, "no packed file of version 1: write one with `elastify export --packed`");
  snprintf(key, sizeof key, "%.*s.block_count", elastic_shown(architecture), architecture.data);
  if (!elastic_read_number(elastic_find_key(&file->model, key), &layers) ||
      !(layers >= 1 && layers <= (double)ELASTIC_MAX_LAYERS))
    return elastic_fail(reader, "key %s: expected 1 to %d layers, got %g", key, ELASTIC_MAX_LAYERS, layers);
  file->interleaved = elastic_is(elastic_find_text(&file->model, "elastify.packed.rope"), "interleaved");
  levels = elastic_array(reader, &file->model, "elastify.packed.levels", 12, 0);
  if (levels == NULL || levels->count < 1 || levels->count > ELASTIC_MAX_LEVELS)
    return elastic_fail(reader, "expected 1 to %d levels", ELASTIC_MAX_LEVELS);
  builder.reader = reader;
  builder.file = file;
  builder.n_levels = file->n_levels = (size_t)levels->count;
  builder.n_layers = (uint64_t)layers;
  count = builder.n_levels * builder.n_layers;
  file->levels = (elastic_level*)calloc(file->n_levels, sizeof *file->levels);
  file->widths = (int32_t*)calloc(2 * (size_t)count, sizeof *file->widths);
  builder.sorted = (const elastic_record**)calloc(file->model.n_tensors + 1, sizeof *builder.sorted);
  done = file->levels != NULL && file->widths != NULL && builder.sorted != NULL;
  if (!done) elastic_fail(reader, "out of memory");
  for (i = 0; done && i < file->model.n_tensors; ++i) builder.sorted[i] = &file->model.tensors[i];
  if (done) qsort(builder.sorted, file->model.n_tensors, sizeof *builder.sorted, elastic_compare_records);
  groups = elastic_table(&builder, "elastify.packed.kv_groups", 5, count);
  d_ff = elastic_table(&builder, "elastify.packed.d_ff", 5, count);
  done = done && !reader->failed;
  if (done) memcpy(file->widths, groups->data, (size_t)count * sizeof *file->widths);
  if (done) memcpy(file->widths + count, d_ff->data, (size_t)count * sizeof *file->widths);
  for (i = 0; done && i < 2 * count; ++i)
    if (file->widths[i] < 0) done = elastic_fail(reader, "a width is %ld", (long)file->widths[i]);
  for (i = 0; done && i < file->n_levels; ++i) done = elastic_build_level(&builder, i);
  free(builder.sorted);
  return done;
}

elastic_gguf* elastic_gguf_open(const char* path, char* error, size_t error_size) {
  elastic_reader reader;
  elastic_gguf* file = (elastic_gguf*)calloc(1, sizeof *file);
  struct stat status;
  void* map = MAP_FAILED;
  int fd, done;
  memset(&reader, 0, sizeof reader);
  reader.error = error;
  reader.error_size = error_size;
  if (error != NULL && error_size > 0) error[0] = '\0';
  fd = open(path, O_RDONLY | O_NONBLOCK); /* without O_NONBLOCK, open() would wait for a pipe's writer */
  if (fd < 0 || file == NULL) {
    elastic_fail(&reader, "cannot open: %s", strerror(errno));
  } else if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size == 0) {
    elastic_fail(&reader, "not a file with something in it");
  } else if ((uint64_t)status.st_size > SIZE_MAX) {
    elastic_fail(&reader, "too large for this machine's addresses");
  } else if ((map = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED) {
    elastic_fail(&reader, "cannot map: %s", strerror(errno));
  }
  if (fd >= 0) close(fd);
  if (map == MAP_FAILED) {
    free(file);
    return NULL;
  }
  file->base = reader.base = (const uint8_t*)map;
  file->size = (size_t)status.st_size;
  reader.size = file->size;
  done = elastic_parse(&reader, &file->model) && elastic_build(&reader, file);
  if (!done) elastic_gguf_close(file);
  return done ? file : NULL;
}

void elastic_gguf_close(elastic_gguf* file) {
  size_t i;
  if (file == NULL) return;
  for (i = 0; file->levels != NULL && i < file->n_levels; ++i) {
    free((void*)file->levels[i].tensors);
    free(file->levels[i].texts);
  }
  free(file->levels);
  free(file->widths);
  elastic_free_parsed(&file->model);
  munmap((void*)file->base, file->size);
  free(file);
}

size_t elastic_gguf_n_levels(const elastic_gguf* file) {
  return file->n_levels;
}

const elastic_level* elastic_gguf_level(const elastic_gguf* file, size_t index) {
  return index < file->n_levels ? &file->levels[index] : NULL;
}

size_t elastic_gguf_find_level(const elastic_gguf* file, double nominal) {
  size_t index = 0, i;
  for (i = 0; i < file->n_levels; ++i)
    if (file->levels[i].nominal <= nominal + 1e-9) index = i;
  return index;
}

const elastic_tensor* elastic_gguf_find_tensor(const elastic_level* level, const char* name) {
  size_t i = 0;
  while (i < level->n_tensors && strcmp(level->tensors[i].name, name) != 0) ++i;
  return i < level->n_tensors ? &level->tensors[i] : NULL;
}

int elastic_gguf_rope_interleaved(const elastic_gguf* file) {
  return file->interleaved;
}

int elastic_gguf_number(const elastic_gguf* file, const char* key, double* value) {
  return elastic_read_number(elastic_find_key(&file->model, key), value);
}

const void* elastic_gguf_base(const elastic_gguf* file, size_t* size) {
  if (size != NULL) *size = file->size;
  return file->base;
}

#endif
#endif /* ELASTIC_GGUF_IMPLEMENTATION */
