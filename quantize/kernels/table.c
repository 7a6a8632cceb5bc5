/* The encoders of one instruction set. */
#include "common.h"

encoder ISA(q8_0), ISA(q4_k), ISA(q5_k), ISA(q6_k);

encoder_table ISA(encoders) = {
    [TYPE_Q8_0] = ISA(q8_0),
    [TYPE_Q4_K] = ISA(q4_k),
    [TYPE_Q5_K] = ISA(q5_k),
    [TYPE_Q6_K] = ISA(q6_k),
};
