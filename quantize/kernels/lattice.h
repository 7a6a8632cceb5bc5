/* The lattices of IQ1, IQ2 and IQ3: a map from cells to points, and for a cell without a point the points to try.
 *
 * A point has 8 coordinates of levels 0..2 (IQ3: 4 of levels 0..7). Its code holds them in 2 (3) bits each, the first
 * lowest. Built once from the points; shared by the objects of all instruction sets.
 */
#ifndef BOREALIS_LATTICE_H
#define BOREALIS_LATTICE_H

#include <stdint.h>

/* Lists are padded to this many codes with their first one, which never wins against itself. */
enum { LIST_UNIT = 16, LIST_BITS = 6 };

/* Entry of the map: the index of the point with this code; or, when negative, ~(unit << LIST_BITS | units): the list
 * of candidates starts at lists + LIST_UNIT * unit, in the order in which they are to be tried. */
struct lattice {
    int32_t *map;
    uint16_t *lists;
    uint16_t first; /* the code of point 0 */
};

/* The lattice of a type, or NULL before it was built. */
const struct lattice *lattice_of(int type);

#endif
