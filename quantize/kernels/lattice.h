/* The lattices of IQ1, IQ2 and IQ3: a map from cells to points, and for a cell without a point the points to try.
 *
 * A point has 8 coordinates of levels 0..2 (IQ3: 4 of levels 0..7). Its code holds them in 2 (3) bits each, the first
 * lowest. Built once from the points; shared by the objects of all instruction sets.
 */
#ifndef BOREALIS_LATTICE_H
#define BOREALIS_LATTICE_H

#include <stdint.h>

/* Lists are padded with their first code, which never wins against itself: to units of 8 codes where lists are short
 * (groups of 4), else to 16. */
enum { UNIT_4 = 8, UNIT_8 = 16, LIST_BITS = 6 };

/* Entry of the map: the index of the point with this code; or, when negative, ~(unit << LIST_BITS | units): a list of
 * this many units starts at `unit` of lists, its candidates in the order in which they are to be tried. */
struct lattice {
    int32_t *map;
    uint16_t *lists;
    uint16_t first; /* the code of point 0 */
};

/* The lattice of a type, or NULL before it was built. */
const struct lattice *lattice_of(int type);

#endif
