// A stand-in for NVIDIA's driver, for driver_check.py: device memory is the host's, a
// launch adds 60 (FAKE_ELEMENTS) numbers of its first two arguments into the third, and
// environment variables make it old, small, or fail. A graph does what its nodes hold when
// it is started; FAKE_CHANGE=0 refuses to change them.
// Work of a stream is done as late as the rules allow: when the host waits for it, or
// another stream's work does that is waited for itself. So who forgets to wait reads what
// is not there yet. FAKE_LOG prints what is done, in order. Time passes in launches: one
// of a kernel whose name has FAKE_SLOW in it takes ten times as long.
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

typedef struct { char name[256]; } Function;
typedef struct Stream Stream;

// What a stream does.
enum { COPY, FILL, KERNEL, UP, DOWN, RECORD, WAIT };
typedef struct Command {
  int kind;
  uint64_t a, b;
  size_t n;
  Stream *other;
  struct Command *next;
  int owned;
} Command;
struct Stream {
  Command *head, **tail;             // given and not done
  uint64_t given, done;
};
typedef struct { double time; Stream *stream; uint64_t number; } Event;

static Stream *all_streams[16];
static double now;

static void reach(Stream *s, uint64_t number);

static void do_log(const char *what, size_t n) {
  if (setting("FAKE_LOG", 0)) fprintf(stderr, "fake driver: %s %zu\n", what, n);
}

static void run(const Command *c) {
  if (c->kind == UP || c->kind == DOWN) do_log(c->kind == UP ? "from the host" : "to the host", c->n);
  if (c->kind == COPY || c->kind == UP || c->kind == DOWN) memcpy((void *)c->a, (void *)c->b, c->n);
  if (c->kind == FILL) memset((void *)c->a, (int)c->b, c->n);
  if (c->kind == KERNEL) {
    const uint64_t *p = (const uint64_t *)c->a;
    const Function *f = (const Function *)c->b;
    const char *slow = getenv("FAKE_SLOW");
    const float *x = (const float *)p[0], *y = (const float *)p[1];
    do_log(f->name, setting("FAKE_ELEMENTS", 60));
    for (long i = 0; i < setting("FAKE_ELEMENTS", 60); i++) ((float *)p[2])[i] = x[i] + y[i];
    // Where a kernel has three arguments; of one that has fewer it is no memory.
    if (p[3]) *(uint32_t *)p[3] = setting("FAKE_STATUS", 0);
    now += slow && strstr(f->name, slow) ? 10 : 1;
  }
  if (c->kind == RECORD) ((Event *)c->a)->time = now;
  if (c->kind == WAIT) reach(c->other, c->a);
}

// Does a stream's work up to its operation of this number.
static void reach(Stream *s, uint64_t number) {
  while (s->done < number) {
    Command *c = s->head;
    must(c != NULL, "streams wait for each other");
    s->head = c->next;
    if (!s->head) s->tail = &s->head;
    run(c);
    s->done++;
    if (c->owned) free((void *)(c->kind == KERNEL ? c->a : c->b));
    free(c);
  }
}

static void reach_all(void) {
  for (int i = 0; i < 16; i++)
    if (all_streams[i]) reach(all_streams[i], all_streams[i]->given);
}

static Result give(Stream *s, Command c) {
  must(current, "no context is current");
  must(s != NULL, "work on the context's own stream");
  Command *kept = malloc(sizeof c);
  *kept = c;
  kept->next = NULL;
  if (c.kind == KERNEL) {
    kept->a = (uint64_t)malloc(c.n);
    kept->owned = 1;
    memcpy((void *)kept->a, (void *)c.a, c.n);
  }
  *s->tail = kept;
  s->tail = &kept->next;
  s->given++;
  return OK;
}

Result cuStreamCreate(void **to, unsigned flags) {
  Stream *s = calloc(1, sizeof(Stream));
  s->tail = &s->head;
  for (int i = 0; i < 16; i++)
    if (!all_streams[i]) { all_streams[i] = s; break; }
  return *to = s, streams++, OK;
}
Result cuStreamDestroy_v2(Stream *s) {
  reach(s, s->given);
  for (int i = 0; i < 16; i++)
    if (all_streams[i] == s) all_streams[i] = NULL;
  return free(s), streams--, OK;
}
Result cuStreamSynchronize(Stream *s) {
  return reach(s, s->given), OK;
}
Result cuStreamWaitEvent(Stream *s, Event *e, unsigned flags) {
#ifdef DEAF
  return OK;
#endif
  if (!e->stream) return OK;
  return give(s, (Command){WAIT, e->number, 0, 0, e->stream, NULL, 0});
}

// A graph's nodes, and what starts it: copies of what they hold.
typedef struct { Command nodes[4096]; int count, whole; } Graph;
typedef struct { Graph *graph; Command held[4096]; } Exec;
typedef struct { void *f; unsigned grid[3], block[3], shared; void **params, **extra, *kernel, *context; } Kernel;
typedef struct { size_t x, y, z, lod; int type; void *host; uint64_t at; void *array, *zero; size_t pitch, height; } Side;
typedef struct { Side from, to; size_t width, height, depth; } Copy;

static Command kernel_of(const Kernel *k) {
  must(k->f && !k->params && k->extra[0] == (void *)1 && k->extra[2] == (void *)2 && !k->extra[4], "parameters");
  must(k->grid[0] && k->block[0] && k->block[0] <= 1024 && k->context == &current, "an empty launch");
  size_t n = *(size_t *)k->extra[3];
  return (Command){KERNEL, (uint64_t)memcpy(malloc(n), k->extra[1], n), (uint64_t)k->f, n, NULL, NULL, 0};
}
static Command copy_of(const Copy *c, void *context) {
  must(c->from.type == 2 && c->to.type == 2 && context == &current, "a copy that leaves the device");
  must(c->width && c->height == 1 && c->depth == 1, "a copy of no bytes, or of several rows");
  return (Command){COPY, c->to.at, c->from.at, c->width, NULL, NULL, 0};
}
static Result add(Command **to, Graph *g, Command *const *before, size_t n, Command c) {
  must(current && g->whole && g->count < 4096, "no context, or no graph");
  must(n == (g->count > 0) && (!n || *before == &g->nodes[g->count - 1]), "nodes do not follow each other");
  g->nodes[g->count] = c;
  return *to = &g->nodes[g->count++], OK;
}
// A node is known by its place in the graph that was made to start.
static Result change(Exec *e, Command *node, Command c) {
  Command *held = &e->held[node - e->graph->nodes];
  must(current && e->graph->whole && held->kind == c.kind, "a node of another graph, or kind");
  if (setting("FAKE_CHANGE", 1) == 0) return INVALID;
  if (held->kind == KERNEL) free((void *)held->a);
  return *held = c, do_log("a change", c.n), OK;
}
static Command kept(Command c) {
  if (c.kind == KERNEL) c.a = (uint64_t)memcpy(malloc(c.n), (void *)c.a, c.n);
  return c;
}
Result cuGraphCreate(Graph **to, unsigned flags) {
  Graph *g = calloc(1, sizeof *g);
  return g->whole = 1, *to = g, graphs_alive++, OK;
}
Result cuGraphAddKernelNode_v2(Command **to, Graph *g, Command *const *before, size_t n, const Kernel *k) {
  return add(to, g, before, n, kernel_of(k));
}
Result cuGraphAddMemcpyNode(Command **to, Graph *g, Command *const *before, size_t n, const Copy *c, void *context) {
  return add(to, g, before, n, copy_of(c, context));
}
Result cuGraphKernelNodeSetAttribute(Command *node, int which, const unsigned *shape) {
  must(node->kind == KERNEL && which == 4 && shape[0] * shape[1] * shape[2] > 1, "clusters");
  return OK;
}
Result cuGraphInstantiateWithFlags(Exec **to, Graph *g, unsigned long long flags) {
  Exec *e = calloc(1, sizeof *e);
  e->graph = g;
  for (int i = 0; i < g->count; i++) e->held[i] = kept(g->nodes[i]);
  fprintf(stderr, "fake driver: a graph of %d\n", g->count);
  return *to = e, graphs_alive++, OK;
}
Result cuGraphExecKernelNodeSetParams_v2(Exec *e, Command *node, const Kernel *k) {
  return change(e, node, kernel_of(k));
}
Result cuGraphExecMemcpyNodeSetParams(Exec *e, Command *node, const Copy *c, void *context) {
  return change(e, node, copy_of(c, context));
}
Result cuGraphLaunch(const Exec *e, Stream *s) {
  fprintf(stderr, "fake driver: a graph starts\n");
  for (int i = 0; i < e->graph->count; i++) give(s, e->held[i]);
  return OK;
}
Result cuGraphExecDestroy(Exec *e) {
  for (int i = 0; i < e->graph->count; i++)
    if (e->held[i].kind == KERNEL) free((void *)e->held[i].a);
  return free(e), graphs_alive--, OK;
}
Result cuGraphDestroy(Graph *g) {
  for (int i = 0; i < g->count; i++)
    if (g->nodes[i].kind == KERNEL) free((void *)g->nodes[i].a);
  return g->whole = 0, free(g), graphs_alive--, OK;
}

Result cuMemAlloc_v2(uint64_t *at, size_t n) {
  must(current && n, "no context, or no bytes");
  if (used + n > (size_t)setting("FAKE_MEMORY", 1 << 30)) return do_log("no memory", n), MEMORY;
  uint64_t *block = aligned_alloc(256, (n + 511) / 256 * 256);
  memset(block, 0xff, (n + 511) / 256 * 256);
  block[0] = n;
  used += n, pieces++;
  return *at = (uint64_t)block + 256, OK;
}
Result cuMemFree_v2(uint64_t at) {
  uint64_t *block = (uint64_t *)(at - 256);
  reach_all();
  used -= block[0], pieces--;
  return free(block), OK;
}
// Page-locked memory: what is copied from it is read when the copy is done.
static struct { uint64_t at; size_t n; } locked[16];
static int on_host(uint64_t at) {
  for (int i = 0; i < 16; i++)
    if (locked[i].at && at >= locked[i].at && at < locked[i].at + locked[i].n) return 1;
  return 0;
}
Result cuMemHostAlloc(void **at, size_t n, unsigned flags) {
  *at = malloc(n);
  for (int i = 0; i < 16; i++)
    if (!locked[i].at) { locked[i].at = (uint64_t)*at, locked[i].n = n; break; }
  return pieces++, OK;
}
Result cuMemFreeHost(void *at) {
  for (int i = 0; i < 16; i++)
    if (locked[i].at == (uint64_t)at) locked[i].at = 0;
  return free(at), pieces--, OK;
}
Result cuMemGetInfo_v2(size_t *free_, size_t *all) {
  return *all = setting("FAKE_MEMORY", 1 << 30), *free_ = *all - used, OK;
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, Stream *s) {
  if (on_host((uint64_t)from)) return give(s, (Command){UP, to, (uint64_t)from, n, NULL, NULL, 0});
  void *staged = malloc(n);
  memcpy(staged, from, n);
  return give(s, (Command){UP, to, (uint64_t)staged, n, NULL, NULL, 1});
}
Result cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, Stream *s) {
  Result done = give(s, (Command){DOWN, (uint64_t)to, from, n, NULL, NULL, 0});
  // To pageable memory the driver copies before it returns.
  if (!on_host((uint64_t)to)) reach(s, s->given);
  return done;
}
Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, Stream *s) {
  return give(s, (Command){COPY, to, from, n, NULL, NULL, 0});
}
Result cuMemsetD8Async(uint64_t at, unsigned char v, size_t n, Stream *s) {
  return give(s, (Command){FILL, at, v, n, NULL, NULL, 0});
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
  static Function all[4096];
  static int count;
  Function *it = &all[count++ % 4096];
  snprintf(it->name, sizeof it->name, "%s", name);
  return *f = it, OK;
}
Result cuFuncSetAttribute(void *f, int which, int value) { return OK; }

Result cuTensorMapEncodeTiled(void *map) { return memset(map, 0, 128), OK; }

typedef struct { unsigned grid[3], block[3], shared; Stream *stream; void *attributes; unsigned count; } Config;
#ifndef OLD
Result cuLaunchKernelEx(const Config *c, void *f, void **params, void **extra) {
  must(f && !params && extra[0] == (void *)1 && extra[2] == (void *)2 && !extra[4], "parameters");
  must(c->grid[0] && c->block[0] && c->block[0] <= 1024, "an empty launch");
  if (setting("FAKE_LAUNCH", 1) == 0) return LAUNCH;
  return give(c->stream, (Command){KERNEL, (uint64_t)extra[1], (uint64_t)f, *(size_t *)extra[3], NULL, NULL, 0});
}
#endif

Result cuEventCreate(void **e, unsigned flags) { return *e = calloc(1, sizeof(Event)), events++, OK; }
Result cuEventRecord(Event *e, Stream *s) {
  give(s, (Command){RECORD, (uint64_t)e, 0, 0, NULL, NULL, 0});
  return e->stream = s, e->number = s->given, OK;
}
Result cuEventSynchronize(Event *e) {
  if (e->stream) reach(e->stream, e->number);
  return OK;
}
Result cuEventElapsedTime(float *ms, const Event *from, const Event *to) {
  reach(from->stream, from->number), reach(to->stream, to->number);
  return *ms = to->time - from->time, OK;
}
Result cuEventDestroy_v2(void *e) { return reach_all(), free(e), events--, OK; }
Result cuGetErrorName(int code, const char **text) {
  if (code == LAUNCH) return *text = "CUDA_ERROR_LAUNCH_FAILED", OK;
  if (code == BAD_PTX) return *text = "CUDA_ERROR_INVALID_PTX", OK;
  return INVALID;
}
Result cuGetErrorString(int code, const char **text) { return *text = "as it was told", OK; }
