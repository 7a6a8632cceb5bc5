/* Runs every encoder of every instruction set over allocations of exactly the right size, for the sanitizers to watch,
 * and compares the instruction sets' bytes. The last line has digests of them, to compare with another build's: of
 * ordinary weights, and of all, where the sign of a NaN scale after an overflow is the machine's. Built and run by
 * sanitize_kernels.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../quantize/kernels/job.h"

int borealis_can_encode(int isa, int type);
int borealis_encode(int isa, int type, const void *rows, int source, int64_t n_rows, int64_t n_per_row,
                    const float *importance, void *out);
int borealis_add_product(int isa, float *rows, const float *up, const float *down, int64_t n_rows, int64_t n_per_row,
                         int64_t rank, float scale);
int borealis_set_lattice(int type, int dims, int bits, int wanted, const uint16_t *points, int n_points);

struct format {
    int type, block, bytes;
};

static const struct format FORMATS[] = {
    {TYPE_F32, 1, 4},        {TYPE_F16, 1, 2},       {TYPE_BF16, 1, 2},       {TYPE_Q4_0, 32, 18},
    {TYPE_Q4_1, 32, 20},     {TYPE_Q5_0, 32, 22},    {TYPE_Q5_1, 32, 24},     {TYPE_Q8_0, 32, 34},
    {TYPE_Q2_K, 256, 84},    {TYPE_Q3_K, 256, 110},  {TYPE_Q4_K, 256, 144},   {TYPE_Q5_K, 256, 176},
    {TYPE_Q6_K, 256, 210},   {TYPE_IQ4_NL, 32, 18},  {TYPE_IQ4_XS, 256, 136}, {TYPE_MXFP4, 32, 17},
    {TYPE_TQ1_0, 256, 54},   {TYPE_TQ2_0, 256, 66},  {TYPE_IQ3_S, 256, 110},  {TYPE_IQ3_XXS, 256, 98},
    {TYPE_IQ2_XXS, 256, 66}, {TYPE_IQ2_XS, 256, 74}, {TYPE_IQ2_S, 256, 82},   {TYPE_IQ1_S, 256, 50},
    {TYPE_IQ1_M, 256, 56},
};

static uint64_t state = 0x9E3779B97F4A7C15u;

static uint32_t random_bits(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

/* Weights of one of 5 kinds: ordinary, few values, any bits that are finite, any bits, zeros. */
static float weight(int kind) {
    const float ordinary = ((float)random_bits() / 4294967296.0f - 0.5f) * 0.1f;
    uint32_t bits = random_bits();
    float any;
    if (kind == 2 && (bits & 0x7f800000) == 0x7f800000)
        bits &= 0xbfffffff;
    memcpy(&any, &bits, 4);
    return kind == 0 ? ordinary : kind == 1 ? (float)(bits % 9) / 4 - 1 : kind == 4 ? 0 : any;
}

/* Importance of one of 2 kinds: small numbers and zeros, or any bits that are finite. */
static float importance_of(int weighing) { return weighing == 1 ? (float)(random_bits() % 5) : weight(2); }

/* Digests (FNV-1a) of the bytes of ordinary weights and of all. */
static uint64_t ordinary_bytes = 0xcbf29ce484222325u, all_bytes = 0xcbf29ce484222325u;

static void note(const uint8_t *bytes, size_t n, bool ordinary) {
    for (size_t i = 0; i < n; i++) {
        all_bytes = (all_bytes ^ bytes[i]) * 0x100000001b3u;
        if (ordinary)
            ordinary_bytes = (ordinary_bytes ^ bytes[i]) * 0x100000001b3u;
    }
}

static void *exactly(size_t size) {
    void *memory = malloc(size);
    if (memory == NULL)
        abort();
    return memory;
}

/* Rows of `source` in an allocation of their own. */
static void *make_rows(int source, int64_t n, int kind) {
    uint8_t *rows = exactly((size_t)n * (source == TYPE_F32 ? 4 : 2));
    for (int64_t i = 0; i < n; i++) {
        const float x = weight(kind);
        uint32_t bits;
        memcpy(&bits, &x, 4);
        if (source == TYPE_F32)
            memcpy(rows + 4 * i, &bits, 4);
        else if (source == TYPE_F16 && kind == 2)
            rows[2 * i] = (uint8_t)bits, rows[2 * i + 1] = (uint8_t)(bits >> 8 & 0xbb);
        else
            memcpy(rows + 2 * i, (uint8_t *)&bits + 2, 2);
    }
    return rows;
}

/* Types that leave to ggml weights whose squares' sums could overflow, and importance that could: those with a lattice. */
static bool has_lattice(int type) {
    return (type >= TYPE_IQ2_XXS && type <= TYPE_IQ1_S) || type == TYPE_IQ3_S || type == TYPE_IQ2_S || type == TYPE_IQ1_M;
}

/* Encodes one case with all instruction sets, without importance where `weighing` is 0; returns the number of faults. */
static int try_case(struct format f, int source, int64_t n_rows, int64_t n_per_row, int kind, int weighing) {
    const size_t nbytes = (size_t)(n_rows * n_per_row / f.block * f.bytes);
    void *rows = make_rows(source, n_rows * n_per_row, kind);
    float *importance = weighing ? exactly((size_t)n_per_row * 4) : NULL;
    uint8_t *first = NULL;
    int faults = 0;
    for (int64_t i = 0; weighing && i < n_per_row; i++)
        importance[i] = importance_of(weighing);
    for (int isa = 0; isa < 3; isa++) {
        if (!borealis_can_encode(isa, f.type))
            continue;
        uint8_t *out = exactly(nbytes);
        const int finite = borealis_encode(isa, f.type, rows, source, n_rows, n_per_row, importance, out);
        if (kind < 3 && source == TYPE_F32 && finite != 1 && !(kind == 2 && has_lattice(f.type)))
            faults++, printf("type %d isa %d: finite weights called not finite\n", f.type, isa);
        if (first == NULL) {
            first = out;
            note(out, finite == 1 ? nbytes : 0, (kind < 2 || kind == 4) && weighing < 2);
        } else if (finite == 1 && memcmp(first, out, nbytes) != 0)
            faults++, printf("type %d isa %d kind %d: bytes differ from the baseline's\n", f.type, isa, kind);
        if (first != out)
            free(out);
    }
    if (first == NULL)
        faults++, printf("type %d: no encoder\n", f.type);
    free(first);
    free(importance);
    free(rows);
    return faults;
}

/* Any points will do here: a sparse choice of codes, 0 among them. */
static int make_lattice(int type, int dims, int bits, int wanted, int n_points) {
    static uint16_t points[2048];
    static bool taken[65536];
    memset(taken, 0, sizeof taken);
    points[0] = 0;
    taken[0] = true;
    for (int n = 1; n < n_points;) {
        unsigned code = 0;
        for (int i = 0; i < dims; i++)
            code |= random_bits() % (bits == 3 ? 8 : 3) << bits * i;
        if (!taken[code])
            points[n++] = (uint16_t)code;
        taken[code] = true;
    }
    return borealis_set_lattice(type, dims, bits, wanted, points, n_points) != 0;
}

static int make_lattices(void) {
    return make_lattice(TYPE_IQ3_XXS, 4, 3, 2, 256) + make_lattice(TYPE_IQ3_S, 4, 3, 3, 512)
         + make_lattice(TYPE_IQ2_XXS, 8, 2, 2, 256) + make_lattice(TYPE_IQ2_XS, 8, 2, 2, 512)
         + make_lattice(TYPE_IQ2_S, 8, 2, 1, 1024) + make_lattice(TYPE_IQ1_S, 8, 2, 3, 2048)
         + make_lattice(TYPE_IQ1_M, 8, 2, 3, 2048);
}

/* Types that cannot be encoded without importance. */
static bool needs_importance(int type) { return type == TYPE_IQ2_XXS || type == TYPE_IQ2_XS || type == TYPE_IQ1_S; }

/* Adds one low-rank update with all instruction sets; returns the number of faults. */
static int try_product(int64_t n_rows, int64_t n_per_row, int64_t rank) {
    const size_t nbytes = (size_t)(n_rows * n_per_row) * 4;
    float *up = make_rows(TYPE_F32, n_rows * rank, 0), *down = make_rows(TYPE_F32, rank * n_per_row, 0);
    float *rows = make_rows(TYPE_F32, n_rows * n_per_row, 0), *first = NULL;
    int faults = 0;
    for (int isa = 0; isa < 3; isa++) {
        float *sums = exactly(nbytes);
        memcpy(sums, rows, nbytes);
        if (borealis_add_product(isa, sums, up, down, n_rows, n_per_row, rank, 0.3f) != 1) {
            free(sums);
            continue;
        }
        if (first == NULL) {
            first = sums;
            note((uint8_t *)sums, nbytes, true);
        } else if (memcmp(first, sums, nbytes) != 0)
            faults++, printf("low-rank update, isa %d: bytes differ from the baseline's\n", isa);
        if (first != sums)
            free(sums);
    }
    faults += first == NULL;
    free(first);
    free(rows);
    free(down);
    free(up);
    return faults;
}

int main(void) {
    static const int SOURCES[] = {TYPE_F32, TYPE_F16, TYPE_BF16};
    static const int ROWS[] = {1, 2, 7, 17, 33};
    int faults = make_lattices(), cases = 0;
    for (size_t f = 0; f < sizeof FORMATS / sizeof *FORMATS; f++)
        for (int s = 0; s < 3; s++)
            for (int r = 0; r < 5; r++)
                for (int kind = 0; kind < 5; kind++)
                    for (int weighing = 0; weighing < 3; weighing++) {
                        const int type = FORMATS[f].type;
                        if (weighing == 0 ? needs_importance(type) : weighing == 2 && has_lattice(type))
                            continue;
                        const int n_per_row = FORMATS[f].block == 1 ? 1 + 37 * r : FORMATS[f].block * (1 + r);
                        faults += try_case(FORMATS[f], SOURCES[s], ROWS[r], n_per_row, kind, weighing);
                        cases++;
                    }
    for (int n_rows = 1; n_rows < 10; n_rows += 2)
        for (int n_per_row = 1; n_per_row < 130; n_per_row += 21)
            for (int rank = 1; rank < 9; rank += 3, cases++)
                faults += try_product(n_rows, n_per_row, rank);
    printf("%d cases, %d faults, ordinary bytes %016llx, all bytes %016llx\n", cases, faults,
           (unsigned long long)ordinary_bytes, (unsigned long long)all_bytes);
    return faults != 0 || cases == 0;
}
