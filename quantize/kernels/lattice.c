/* Builds the lattices. Candidates of a cell are the points of the two smallest distances (one for IQ2_S, three for
 * IQ1 and IQ3_S), nearest first, and among equals by index. */
#include "lattice.h"

#include <stdlib.h>
#include <string.h>

#include "job.h"

enum { MAX_POINTS = 2048, MAX_COORDINATES = 8, MAX_LEVELS = 8 };

static struct lattice lattices[TYPE_COUNT];

const struct lattice *lattice_of(int type) {
    const int owner = type == TYPE_IQ1_M ? TYPE_IQ1_S : type;
    return lattices[owner].map ? &lattices[owner] : NULL;
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

static void measure(struct builder *b, const uint8_t *levels) {
    for (int p = 0; p < b->points; p++) {
        b->codes[p] = 0;
        for (int k = 0; k < b->coordinates; k++) {
            const int level = levels[p * b->coordinates + k];
            b->codes[p] |= (uint16_t)(level << (b->bits * k));
            for (int v = 0; v < b->levels; v++)
                b->squares[k][v][p] = (uint8_t)((level - v) * (level - v));
        }
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

static bool fill(struct builder *b, const uint8_t *levels) {
    const uint32_t cells = 1u << (b->bits * b->coordinates);
    b->room = (size_t)MAX_POINTS * 256;
    b->map = malloc(cells * sizeof *b->map);
    b->lists = malloc(b->room * sizeof *b->lists);
    if (!b->map || !b->lists)
        return false;
    measure(b, levels);
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

/* Builds the lattice of a type from its points (`levels` has their coordinates). Not to be called for two types or
 * from two threads at once. Returns 1, or 0 when it cannot be built. */
#if defined(_WIN32)
__declspec(dllexport)
#else
__attribute__((visibility("default")))
#endif
int borealis_set_lattice(int type, int points, int coordinates, const uint8_t *levels) {
    const int top = coordinates == 4 ? 7 : 2;
    if (type < 0 || type >= TYPE_COUNT || points < 1 || points > MAX_POINTS || (coordinates != 4 && coordinates != 8))
        return 0;
    for (int i = 0; i < points * coordinates; i++)
        if (levels[i] > top)
            return 0;
    if (lattices[type].map)
        return 1;
    struct builder *b = calloc(1, sizeof *b);
    if (!b)
        return 0;
    b->points = points;
    b->coordinates = coordinates;
    b->levels = top + 1;
    b->bits = coordinates == 4 ? 3 : 2;
    b->wanted = type == TYPE_IQ1_S || type == TYPE_IQ3_S ? 3 : type == TYPE_IQ2_S ? 1 : 2;
    const bool built = fill(b, levels);
    if (built)
        lattices[type] = (struct lattice){b->map, b->lists, b->codes[0]};
    else
        free(b->map), free(b->lists);
    free(b);
    return built;
}
