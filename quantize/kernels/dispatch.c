/* The library's face: which instruction sets can be used here, and one call that encodes rows. */
#include <stddef.h>

#include "job.h"
#include "lattice.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { BASELINE, AVX2, AVX512, N_ISAS };

extern encoder_table encoders_baseline;
extern low_rank add_product_baseline;
#ifdef HAVE_AVX2
extern encoder_table encoders_avx2;
extern low_rank add_product_avx2;
#endif
#ifdef HAVE_AVX512
extern encoder_table encoders_avx512;
extern low_rank add_product_avx512;
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>

/* The register files the operating system saves: bit 1 SSE, 2 AVX, 5..7 AVX-512. */
static uint64_t saved_state(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int widest(void) {
    enum { F16C = 1 << 29, OSXSAVE = 1 << 27, HAS_AVX2 = 1 << 5, F = 1 << 16, DQ = 1 << 17, BW = 1 << 30 };
    const uint32_t VL = 1u << 31, wide = F | DQ | BW | VL;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE) || !(c & F16C))
        return BASELINE;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & HAS_AVX2) || (saved_state() & 0x06) != 0x06)
        return BASELINE;
    return (b & wide) == wide && (saved_state() & 0xe6) == 0xe6 ? AVX512 : AVX2;
}
#else
static int widest(void) { return BASELINE; }
#endif

/* The widest instruction set of this machine, asked once: a virtual machine takes 15 us to answer. Threads that ask at
 * the same time get the same answer. */
static int processor(void) {
    static int known = -1;
    int isa = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (isa < 0)
        __atomic_store_n(&known, isa = widest(), __ATOMIC_RELAXED);
    return isa;
}

static encoder *find(int isa, int type) {
    if (type < 0 || type >= TYPE_COUNT || isa > processor())
        return NULL;
#ifdef HAVE_AVX512
    if (isa == AVX512)
        return encoders_avx512[type];
#endif
#ifdef HAVE_AVX2
    if (isa == AVX2)
        return encoders_avx2[type];
#endif
    return isa == BASELINE ? encoders_baseline[type] : NULL;
}

static low_rank *find_product(int isa) {
    if (isa > processor())
        return NULL;
#ifdef HAVE_AVX512
    if (isa == AVX512)
        return add_product_avx512;
#endif
#ifdef HAVE_AVX2
    if (isa == AVX2)
        return add_product_avx2;
#endif
    return isa == BASELINE ? add_product_baseline : NULL;
}

/* Types that need borealis_set_lattice first. */
static bool has_lattice(int type) {
    return (type >= TYPE_IQ2_XXS && type <= TYPE_IQ1_S) || type == TYPE_IQ3_S || type == TYPE_IQ2_S || type == TYPE_IQ1_M;
}

/* Whether rows can be encoded to `type` with `isa` (0 baseline, 1 AVX2, 2 AVX-512) on this machine. */
EXPORT int borealis_can_encode(int isa, int type) { return find(isa, type) != NULL; }

/* Encodes rows as `struct job` says. Returns 1; 0 when a weight was not finite, and then the output is not to be
 * used; -1 when there is no such encoder. */
EXPORT int borealis_encode(int isa, int type, const void *rows, int source, int64_t n_rows, int64_t n_per_row,
                           const float *importance, void *out) {
    encoder *encode = find(isa, type);
    if (encode == NULL || (has_lattice(type) && lattice_of(type) == NULL))
        return -1;
    const struct job job = {rows, source, n_rows, n_per_row, importance, out};
#if defined(__x86_64__)
    const unsigned mode = _mm_getcsr(); /* another library may have set flush-to-zero in this thread */
    _mm_setcsr(0x1f80);
    const int finite = encode(&job);
    _mm_setcsr(mode);
    return finite;
#else
    return encode(&job);
#endif
}

/* Adds a low-rank update to float32 rows, see job.h. Returns 1; -1 when there are no kernels of `isa`. */
EXPORT int borealis_add_product(int isa, float *rows, const float *up, const float *down, int64_t n_rows,
                                int64_t n_per_row, int64_t rank, float scale) {
    low_rank *add = find_product(isa);
    if (add == NULL)
        return -1;
#if defined(__x86_64__)
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(0x1f80);
    add(rows, up, down, n_rows, n_per_row, rank, scale);
    _mm_setcsr(mode);
#else
    add(rows, up, down, n_rows, n_per_row, rank, scale);
#endif
    return 1;
}
