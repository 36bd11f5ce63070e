// A stand-in for NVIDIA's driver, for driver_check.py: device memory is the host's, a
// launch adds the first two arguments into the third, and environment variables make
// it old, small, or fail. Work is recorded and done again where a stream captures.
// It aborts where it is used as the driver must not be.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
enum { OK = 0, INVALID = 1, MEMORY = 2, NO_DEVICE = 100, BAD_PTX = 218, NOT_FOUND = 500, LAUNCH = 719 };

static long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text ? atol(text) : otherwise;
}

static void must(int holds, const char *what) {
  if (!holds) {
    fprintf(stderr, "fake driver: %s\n", what);
    abort();
  }
}

static int current, pieces, modules, streams, events, graphs_alive;
static size_t used;

Result cuInit(unsigned flags) { return setting("FAKE_COUNT", 1) == 0 ? NO_DEVICE : OK; }
Result cuDriverGetVersion(int *v) { return *v = setting("FAKE_VERSION", 12040), OK; }
Result cuDeviceGetCount(int *n) { return *n = setting("FAKE_COUNT", 1), OK; }
Result cuDeviceGet(int *d, int number) { return *d = number, OK; }
Result cuDeviceGetName(char *name, int room, int d) { return snprintf(name, room, "Fake %d", d), OK; }
Result cuDeviceTotalMem_v2(size_t *n, int d) { return *n = setting("FAKE_MEMORY", 1 << 30), OK; }
Result cuDeviceGetAttribute(int *v, int which, int d) {
  long capability = setting("FAKE_CAPABILITY", 90);
  *v = which == 75 ? capability / 10 : which == 76 ? capability % 10 : which == 97 ? 99 << 10 : 0;
  return OK;
}
Result cuDevicePrimaryCtxRetain(void **c, int d) { return *c = &current, OK; }
Result cuDevicePrimaryCtxRelease_v2(int d) {
  must(!pieces && !modules && !streams && !events && !graphs_alive, "something was not given back");
  fprintf(stderr, "fake driver: all was given back\n");
  return OK;
}
Result cuCtxSetCurrent(void *c) { return current = c == &current, OK; }

// What a stream records.
typedef struct Command {
  int kind;
  uint64_t a, b;
  size_t n;
  struct Command *next;
} Command;
typedef struct { int capturing; Command *first, **last; } Stream;
typedef struct { Command *first; } Graph;
typedef struct { char name[256]; } Function;

static void run(const Command *c) {
  if (c->kind == 0) memcpy((void *)c->a, (void *)c->b, c->n);
  if (c->kind == 1) memset((void *)c->a, (int)c->b, c->n);
  if (c->kind == 2) {
    const uint64_t *p = (const uint64_t *)c->a;
    const float *x = (const float *)p[0], *y = (const float *)p[1];
    for (int i = 0; i < 60; i++) ((float *)p[2])[i] = x[i] + y[i];
    *(uint32_t *)p[3] = setting("FAKE_STATUS", 0);
  }
}

static Result give(Stream *s, Command c) {
  must(current, "no context is current");
  if (!s->capturing) return run(&c), OK;
  Command *kept = malloc(sizeof c);
  *kept = c;
  if (c.kind == 2) {
    kept->a = (uint64_t)malloc(c.n);
    memcpy((void *)kept->a, (void *)c.a, c.n);
  }
  kept->next = NULL;
  *s->last = kept;
  s->last = &kept->next;
  return OK;
}

Result cuStreamCreate(void **s, unsigned flags) { return *s = calloc(1, sizeof(Stream)), streams++, OK; }
Result cuStreamDestroy_v2(void *s) { return free(s), streams--, OK; }
Result cuStreamSynchronize(Stream *s) { return must(!s->capturing, "a wait is recorded"), OK; }
Result cuStreamBeginCapture_v2(Stream *s, int mode) {
  return s->capturing = 1, s->first = NULL, s->last = &s->first, OK;
}
Result cuStreamEndCapture(Stream *s, void **g) {
  if (!s->capturing) return INVALID;
  Graph *graph = malloc(sizeof *graph);
  graph->first = s->first;
  return s->capturing = 0, *g = graph, OK;
}
Result cuGraphInstantiateWithFlags(void **e, Graph *g, unsigned long long flags) {
  Graph *exec = malloc(sizeof *exec);
  return *exec = *g, *e = exec, graphs_alive++, OK;
}
Result cuGraphDestroy(void *g) { return free(g), OK; }
Result cuGraphExecDestroy(void *g) { return free(g), graphs_alive--, OK; }
Result cuGraphLaunch(Graph *g, Stream *s) {
  must(!s->capturing && current, "a graph is recorded");
  for (const Command *c = g->first; c; c = c->next) run(c);
  fprintf(stderr, "fake driver: a graph\n");
  return OK;
}

Result cuMemAlloc_v2(uint64_t *at, size_t n) {
  must(current && n, "no context, or no bytes");
  if (used + n > (size_t)setting("FAKE_MEMORY", 1 << 30)) return MEMORY;
  uint64_t *block = aligned_alloc(256, (n + 511) / 256 * 256);
  block[0] = n;
  used += n, pieces++;
  return *at = (uint64_t)block + 256, OK;
}
Result cuMemFree_v2(uint64_t at) {
  uint64_t *block = (uint64_t *)(at - 256);
  used -= block[0], pieces--;
  return free(block), OK;
}
Result cuMemHostAlloc(void **at, size_t n, unsigned flags) { return *at = malloc(n), pieces++, OK; }
Result cuMemFreeHost(void *at) { return free(at), pieces--, OK; }
Result cuMemGetInfo_v2(size_t *free_, size_t *all) {
  return *all = setting("FAKE_MEMORY", 1 << 30), *free_ = *all - used, OK;
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, Stream *s) {
  must(!s->capturing, "a copy from the host is recorded");
  return give(s, (Command){0, to, (uint64_t)from, n, NULL});
}
Result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, Stream *s) {
  must(!s->capturing, "a copy to the host is recorded");
  return give(s, (Command){0, (uint64_t)to, from, n, NULL});
}
Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, Stream *s) {
  return give(s, (Command){0, to, from, n, NULL});
}
Result cuMemsetD8Async(uint64_t at, unsigned char v, size_t n, Stream *s) {
  return give(s, (Command){1, at, v, n, NULL});
}

Result cuModuleLoadDataEx(void **m, const char *text, unsigned n, const int *options, void **values) {
  must(n == 2 && options[0] == 5 && options[1] == 6, "the options are not an error log");
  if (setting("FAKE_REFUSE", 0)) {
    snprintf(values[0], (size_t)values[1], "line 7; unknown symbol");
    return BAD_PTX;
  }
  return *m = strdup(text), modules++, OK;
}
Result cuModuleUnload(void *m) { return free(m), modules--, OK; }
Result cuModuleGetFunction(void **f, const char *module, const char *name) {
  if (!module || !strstr(module, name)) return NOT_FOUND;
  return *f = (void *)module, OK;
}
Result cuFuncSetAttribute(void *f, int which, int value) { return OK; }

Result cuTensorMapEncodeTiled(void *map) { return memset(map, 0, 128), OK; }

typedef struct { unsigned grid[3], block[3], shared; Stream *stream; void *attributes; unsigned count; } Config;
#ifndef OLD
Result cuLaunchKernelEx(const Config *c, void *f, void **params, void **extra) {
  must(f && !params && extra[0] == (void *)1 && extra[2] == (void *)2 && !extra[4], "parameters");
  must(c->grid[0] && c->block[0] && c->block[0] <= 1024, "an empty launch");
  if (setting("FAKE_LAUNCH", 1) == 0) return LAUNCH;
  return give(c->stream, (Command){2, (uint64_t)extra[1], 0, *(size_t *)extra[3], NULL});
}
#endif

Result cuEventCreate(void **e, unsigned flags) { return *e = malloc(8), events++, OK; }
Result cuEventRecord(long *e, void *s) {
  static long clock;
  return *e = clock++, OK;
}
Result cuEventSynchronize(void *e) { return OK; }
Result cuEventElapsedTime(float *ms, const long *from, const long *to) { return *ms = *to - *from, OK; }
Result cuEventDestroy_v2(void *e) { return free(e), events--, OK; }
Result cuGetErrorName(int code, const char **text) {
  if (code == LAUNCH) return *text = "CUDA_ERROR_LAUNCH_FAILED", OK;
  if (code == BAD_PTX) return *text = "CUDA_ERROR_INVALID_PTX", OK;
  return INVALID;
}
Result cuGetErrorString(int code, const char **text) { return *text = "as it was told", OK; }
