// Where a device's time goes: preloaded into a program for CUDA, it puts an event before and behind every launch and every
// product, and writes the sum by kernel, largest first, to the file that JANUS_KERNELS names. Launches come one after the other
// on the program's only stream, so that the time between the two events is the kernel's own; each costs some microseconds more.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { void *start, *end; int name; } Pair;
typedef struct { char name[160]; double ms; long count; } Kernel;

#define PAIRS 2048
#define KERNELS 1024
static Pair pairs[PAIRS];
static int waiting, made, kernels;
static Kernel table[KERNELS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int (*event_create)(void **, unsigned), (*event_record)(void *, void *), (*event_wait)(void *);
static int (*event_ms)(float *, void *, void *), (*function_name)(const char **, void *);

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static void prepare(void) {
    if (event_create) return;
    event_create = real("cuEventCreate");
    event_record = real("cuEventRecord");
    event_wait = real("cuEventSynchronize");
    event_ms = real("cuEventElapsedTime_v2");
    if (!event_ms) event_ms = real("cuEventElapsedTime");
    function_name = real("cuFuncGetName");
}

static int number_of(const char *name) {
    for (int i = 0; i < kernels; i++)
        if (!strncmp(table[i].name, name, sizeof table[i].name - 1)) return i;
    if (kernels == KERNELS) return 0;
    strncpy(table[kernels].name, name, sizeof table[0].name - 1);
    return kernels++;
}

static void collect(void) {
    for (int i = 0; i < waiting; i++) {
        float ms = 0;
        if (!event_wait(pairs[i].end) && !event_ms(&ms, pairs[i].start, pairs[i].end)) {
            table[pairs[i].name].ms += ms;
            table[pairs[i].name].count++;
        }
    }
    waiting = 0;
}

static Pair *begin(const char *name, void *stream) {
    prepare();
    if (waiting == PAIRS) collect();
    Pair *pair = &pairs[waiting];
    if (waiting == made) {
        if (event_create(&pair->start, 0) || event_create(&pair->end, 0)) return NULL;
        made++;
    }
    pair->name = number_of(name);
    event_record(pair->start, stream);
    return pair;
}

static void end(Pair *pair, void *stream) {
    if (!pair) return;
    event_record(pair->end, stream);
    waiting++;
}

int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **extra) {
    static int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
    if (!launch) launch = real("cuLaunchKernel");
    pthread_mutex_lock(&lock);
    prepare();
    const char *name = NULL;
    if (!function_name || function_name(&name, f) || !name) name = "a kernel without a name";
    Pair *pair = begin(name, stream);
    int result = launch(f, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra);
    end(pair, stream);
    pthread_mutex_unlock(&lock);
    return result;
}

int cublasGemmStridedBatchedEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha, const void *a, int at,
                               int lda, long long sa, const void *b, int bt, int ldb, long long sb, const void *beta, void *c,
                               int ct, int ldc, long long sc, int batch, int compute, int algorithm) {
    static int (*gemm)(void *, int, int, int, int, int, const void *, const void *, int, int, long long, const void *, int, int,
                       long long, const void *, void *, int, int, long long, int, int, int);
    static int (*stream_of)(void *, void **);
    if (!gemm) gemm = real("cublasGemmStridedBatchedEx");
    if (!stream_of) stream_of = real("cublasGetStream_v2");
    void *stream = NULL;
    if (stream_of) stream_of(handle, &stream);
    char name[160];
    snprintf(name, sizeof name, "cuBLAS %s%s %d x %d x %d, %d at once, type %d", ta ? "T" : "N", tb ? "T" : "N", m, n, k, batch, at);
    pthread_mutex_lock(&lock);
    Pair *pair = begin(name, stream);
    int result = gemm(handle, ta, tb, m, n, k, alpha, a, at, lda, sa, b, bt, ldb, sb, beta, c, ct, ldc, sc, batch, compute, algorithm);
    end(pair, stream);
    pthread_mutex_unlock(&lock);
    return result;
}

static int by_time(const void *one, const void *other) {
    double a = ((const Kernel *)one)->ms, b = ((const Kernel *)other)->ms;
    return (a < b) - (a > b);
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("JANUS_KERNELS");
    if (!path || !kernels) return;
    collect();
    qsort(table, kernels, sizeof table[0], by_time);
    double all = 0;
    for (int i = 0; i < kernels; i++) all += table[i].ms;
    FILE *out = fopen(path, "w");
    if (!out) return;
    fprintf(out, "%10s %7s %9s  %s\n", "ms", "share", "launches", "kernel");
    for (int i = 0; i < kernels; i++)
        fprintf(out, "%10.2f %6.1f%% %9ld  %s\n", table[i].ms, all > 0 ? 100 * table[i].ms / all : 0, table[i].count, table[i].name);
    fclose(out);
}
