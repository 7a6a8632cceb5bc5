/* The point sets of the IQ types: 4 levels of 3 bits, or 8 levels of 2 bits, of which only some combinations exist. */
#ifndef BOREALIS_LATTICE_H
#define BOREALIS_LATTICE_H

#include <stdint.h>

enum { NEIGHBOURS_AT_A_TIME = 8 };

/* A combination of levels is a code: level i in bits 3 i (or 2 i) and up. A code that is no point has a list of nearby
 * points in ggml's order, as `place in the list << 16 | code`; the last repeats until the list is a multiple of 8. */
struct lattice {
    const int16_t *index;       /* by code: the point's number, or -1 */
    const uint32_t *first;      /* by code: where its neighbours begin */
    const uint16_t *eights;     /* by code: how many times 8 there are; 0 for a point */
    const uint32_t *neighbours;
    uint16_t origin;            /* the code of point 0 */
};

/* The lattice of a type, NULL until borealis_set_lattice has been called for it. */
const struct lattice *lattice_of(int type);

#endif
