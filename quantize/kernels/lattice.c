/* Builds the lattices. Candidates of a cell are the points of its smallest one to three distances, nearest first, and
 * among equals by index. */
#include "lattice.h"

#include <stdlib.h>
#include <string.h>

#include "job.h"

enum { MAX_POINTS = 2048, MAX_COORDINATES = 8, MAX_LEVELS = 8 };

static struct lattice lattices[TYPE_COUNT];

/* IQ1_M has IQ1_S's lattice. */
static int owner_of(int type) { return type == TYPE_IQ1_M ? TYPE_IQ1_S : type; }

const struct lattice *lattice_of(int type) {
    return lattices[owner_of(type)].map ? &lattices[owner_of(type)] : NULL;
}

/* Work space: squares[k][v][p] is the squared distance of point p from level v in coordinate k. */
struct builder {
    int points, coordinates, levels, bits, wanted;
    uint8_t squares[MAX_COORDINATES][MAX_LEVELS][MAX_POINTS];
    uint16_t codes[MAX_POINTS];
    uint8_t distance[MAX_POINTS];
    int32_t *map;
    uint16_t *lists;
    size_t used, room;
};

static void measure(struct builder *b) {
    for (int p = 0; p < b->points; p++)
        for (int k = 0; k < b->coordinates; k++) {
            const int level = b->codes[p] >> (b->bits * k) & ((1 << b->bits) - 1);
            for (int v = 0; v < b->levels; v++)
                b->squares[k][v][p] = (uint8_t)((level - v) * (level - v));
        }
}

/* Fills distance for the cell of this code, and returns the largest distance that is still wanted. */
static int distances(struct builder *b, uint32_t code) {
    memset(b->distance, 0, sizeof b->distance);
    for (int k = 0; k < b->coordinates; k++) {
        const uint8_t *squares = b->squares[k][code >> (b->bits * k) & ((1u << b->bits) - 1)];
        for (int p = 0; p < b->points; p++)
            b->distance[p] = (uint8_t)(b->distance[p] + squares[p]);
    }
    int last = -1;
    for (int i = 0; i < b->wanted; i++) {
        uint8_t next = 255;
        for (int p = 0; p < b->points; p++) {
            const uint8_t d = b->distance[p] > last ? b->distance[p] : 255;
            next = d < next ? d : next;
        }
        if (next < 255)
            last = next;
    }
    return last;
}

/* Appends the list of a cell. Returns false when memory ends. */
static bool list_candidates(struct builder *b, uint32_t code) {
    const int last = distances(b, code);
    uint16_t *const list = b->lists + b->used;
    const size_t unit = b->coordinates == 4 ? UNIT_4 : UNIT_8;
    size_t n = 0;
    if (b->room - b->used < MAX_POINTS + UNIT_8)
        return false;
    for (int d = 0; d <= last; d++)
        for (const uint8_t *at = b->distance, *end = at + b->points; (at = memchr(at, d, (size_t)(end - at))); at++)
            list[n++] = b->codes[at - b->distance];
    while (n % unit)
        list[n++] = list[0];
    b->map[code] = ~(int32_t)(b->used / unit << LIST_BITS | n / unit);
    b->used += n;
    return n / unit < 1 << LIST_BITS;
}

static bool fill(struct builder *b) {
    const uint32_t cells = 1u << (b->bits * b->coordinates);
    b->room = (size_t)MAX_POINTS * 256;
    b->map = malloc(cells * sizeof *b->map);
    b->lists = malloc(b->room * sizeof *b->lists);
    if (!b->map || !b->lists)
        return false;
    measure(b);
    memset(b->map, 0xff, cells * sizeof *b->map);
    for (int p = 0; p < b->points; p++)
        b->map[b->codes[p]] = p;
    for (uint32_t code = 0; code < cells; code++) {
        bool inside = b->map[code] < 0;
        for (int k = 0; k < b->coordinates; k++)
            inside &= (code >> (b->bits * k) & ((1u << b->bits) - 1)) < (uint32_t)b->levels;
        if (inside && !list_candidates(b, code))
            return false;
    }
    return true;
}

/* Gives `type` its points: codes of `dims` levels of `bits` bits (8 of 2, or 4 of 3), in the order of their numbers.
 * `wanted` is how many different distances a list of candidates covers. Returns 0, or -1 without memory. Not to be
 * called while the type is being encoded, or by two threads at once; a second call does nothing. */
#if defined(_WIN32)
__declspec(dllexport)
#else
__attribute__((visibility("default")))
#endif
int borealis_set_lattice(int type, int dims, int bits, int wanted, const uint16_t *points, int n_points) {
    struct lattice *const target = &lattices[owner_of(type)];
    if (target->map)
        return 0;
    struct builder *b = n_points > MAX_POINTS ? NULL : calloc(1, sizeof *b);
    if (!b)
        return -1;
    b->points = n_points;
    b->coordinates = dims;
    b->levels = bits == 3 ? 8 : 3;
    b->bits = bits;
    b->wanted = wanted;
    memcpy(b->codes, points, (size_t)n_points * sizeof *points);
    const bool built = fill(b);
    if (built)
        *target = (struct lattice){b->map, b->lists, b->codes[0]};
    else
        free(b->map), free(b->lists);
    free(b);
    return built ? 0 : -1;
}
