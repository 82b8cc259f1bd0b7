/* Switches between the levels of a packed file and measures the cost, compared with copying each level out.
 *
 *   switch_levels model.gguf [ROUNDS]
 *
 * A runtime keeps one struct per tensor, which says where its data starts and how much of it counts.
 * Switching fills these structs from the level's table; no weight is read, moved or freed. A runtime that
 * needs every level contiguous must copy it instead. Both ways go through all levels in turn, ROUNDS times
 * (default 20 and 1), in one process on one mapped file. All pages are touched first, so that neither way
 * waits for the disk. */
#define _POSIX_C_SOURCE 200809L
#define ELASTIC_GGUF_IMPLEMENTATION
#include "elastify/elastic_gguf.h"

#include <sys/resource.h>
#include <time.h>

/* A runtime's tensor: ggml's struct ggml_tensor has the same four members. */
typedef struct runtime_tensor {
  const void* data;
  int64_t ne[4];
  size_t nb[4];
  uint32_t type;
} runtime_tensor;

typedef struct usage {
  double seconds;
  long minor_faults, major_faults;
  double rss_mib;
} usage;

static usage measure(void) {
  usage now;
  struct timespec time;
  struct rusage resources;
  long pages = 0;
  FILE* file = fopen("/proc/self/statm", "r");
  clock_gettime(CLOCK_MONOTONIC, &time);
  getrusage(RUSAGE_SELF, &resources);
  if (file != NULL) {
    if (fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
    fclose(file);
  }
  now.seconds = (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
  now.minor_faults = resources.ru_minflt;
  now.major_faults = resources.ru_majflt;
  now.rss_mib = (double)pages * (double)sysconf(_SC_PAGESIZE) / 1048576.0;
  return now;
}

static void report(const char* what, usage before, usage after, long n_switches) {
  printf("%-10s %6ld switches  %12.2f us each  %8.1f minor faults each  %4ld major  RSS %.1f -> %.1f MiB\n",
         what, n_switches, (after.seconds - before.seconds) / (double)n_switches * 1e6,
         (double)(after.minor_faults - before.minor_faults) / (double)n_switches,
         after.major_faults - before.major_faults, before.rss_mib, after.rss_mib);
}

/* Bytes of a row at the level. They are fewer than the stride if columns are left out. */
static size_t kept_row(const elastic_tensor* tensor) {
  int64_t elements = 1;
  size_t bytes = 1;
  elastic_block(tensor->type, &elements, &bytes);
  return (size_t)(tensor->ne[0] / elements) * bytes;
}

static size_t level_bytes(const elastic_level* level) {
  size_t bytes = 0, i;
  for (i = 0; i < level->n_tensors; ++i)
    bytes += kept_row(&level->tensors[i]) * (size_t)level->tensors[i].ne[1];
  return bytes;
}

static size_t switch_to(const elastic_level* level, runtime_tensor* model) {
  size_t i;
  for (i = 0; i < level->n_tensors; ++i) {
    const elastic_tensor* tensor = &level->tensors[i];
    model[i].data = tensor->data;
    memcpy(model[i].ne, tensor->ne, sizeof model[i].ne);
    memcpy(model[i].nb, tensor->nb, sizeof model[i].nb);
    model[i].type = tensor->type;
  }
  return level->n_tensors;
}

/* Copies the level into contiguous memory of its own. */
static unsigned char* copy_out(const elastic_level* level) {
  unsigned char *copy = (unsigned char*)malloc(level_bytes(level)), *next = copy;
  size_t i;
  int64_t row;
  for (i = 0; copy != NULL && i < level->n_tensors; ++i) {
    const elastic_tensor* tensor = &level->tensors[i];
    const size_t kept = kept_row(tensor);
    for (row = 0; row < tensor->ne[1]; ++row, next += kept)
      memcpy(next, (const unsigned char*)tensor->data + (size_t)row * tensor->nb[1], kept);
  }
  return copy;
}

static unsigned long touch(const elastic_gguf* file) {
  size_t size, at;
  unsigned long sum = 0;
  const unsigned char* base = (const unsigned char*)elastic_gguf_base(file, &size);
  for (at = 0; at < size; at += 4096) sum += base[at];
  return sum;
}

int main(int argc, char** argv) {
  /* Volatile, so that the compiler does not drop switches whose result is never read. */
  size_t (*volatile change)(const elastic_level*, runtime_tensor*) = switch_to;
  char error[256];
  const long rounds = argc > 2 ? strtol(argv[2], NULL, 10) : 20;
  elastic_gguf* file;
  runtime_tensor* model;
  usage before, opened, touched, after;
  size_t n_levels, most = 0, i;
  long round, done = 0;
  if (argc < 2 || rounds < 1) {
    fprintf(stderr, "usage: switch_levels model.gguf [ROUNDS]\n");
    return 2;
  }
  before = measure();
  file = elastic_gguf_open(argv[1], error, sizeof error);
  if (file == NULL) {
    fprintf(stderr, "switch_levels: %s: %s\n", argv[1], error);
    return 1;
  }
  opened = measure();
  n_levels = elastic_gguf_n_levels(file);
  for (i = 0; i < n_levels; ++i) {
    const elastic_level* level = elastic_gguf_level(file, i);
    size_t own = 0, t;
    for (t = 0; t < level->n_tensors; ++t) own += level->tensors[t].own ? 1 : 0;
    if (level->n_tensors > most) most = level->n_tensors;
    printf("level %.4g: true ratio %.4f, %lu tensors (%lu its own), %.1f MiB%s\n", level->nominal,
           level->decoder_ratio, (unsigned long)level->n_tensors, (unsigned long)own,
           (double)level_bytes(level) / 1048576.0, level->adapter != NULL ? ", with an adapter" : "");
  }
  printf("opened     in %.2f ms, RSS %.1f -> %.1f MiB\n", (opened.seconds - before.seconds) * 1e3,
         before.rss_mib, opened.rss_mib);
  model = (runtime_tensor*)calloc(most, sizeof *model);
  if (model == NULL) return 1;

  fprintf(stderr, "touched all pages: %lu\n", touch(file));
  touched = measure();
  for (round = 0; round < rounds; ++round)
    for (i = 0; i < n_levels; ++i, ++done) change(elastic_gguf_level(file, i), model);
  after = measure();
  report("by table", touched, after, done);

  before = measure();
  for (i = 0; i < n_levels; ++i) {
    unsigned char* copy = copy_out(elastic_gguf_level(file, i));
    if (copy == NULL) {
      fprintf(stderr, "switch_levels: no memory to copy level %g\n", elastic_gguf_level(file, i)->nominal);
      return 1;
    }
    after = measure();
    if (i + 1 < n_levels) free(copy);
  }
  report("by copying", before, after, (long)n_levels);
  free(model);
  elastic_gguf_close(file);
  return 0;
}
