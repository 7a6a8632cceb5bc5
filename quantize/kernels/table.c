/* The encoders of one instruction set. */
#include "common.h"

encoder ISA(f32), ISA(f16), ISA(bf16);
encoder ISA(q4_0), ISA(q4_1), ISA(q5_0), ISA(q5_1), ISA(q2_k), ISA(q3_k), ISA(iq4_nl), ISA(iq4_xs), ISA(mxfp4), ISA(tq1_0), ISA(tq2_0), ISA(iq3_s), ISA(iq3_xxs), ISA(iq2_xxs), ISA(iq2_xs), ISA(iq2_s), ISA(iq1_s), ISA(iq1_m);
encoder ISA(q8_0), ISA(q4_k), ISA(q5_k), ISA(q6_k);

encoder_table ISA(encoders) = {
    [TYPE_F32] = ISA(f32),
    [TYPE_F16] = ISA(f16),
    [TYPE_BF16] = ISA(bf16),
    [TYPE_Q4_0] = ISA(q4_0),
    [TYPE_Q4_1] = ISA(q4_1),
    [TYPE_Q5_0] = ISA(q5_0),
    [TYPE_Q5_1] = ISA(q5_1),
    [TYPE_Q2_K] = ISA(q2_k),
    [TYPE_Q3_K] = ISA(q3_k),
    [TYPE_IQ4_NL] = ISA(iq4_nl),
    [TYPE_IQ4_XS] = ISA(iq4_xs),
    [TYPE_MXFP4] = ISA(mxfp4),
    [TYPE_TQ1_0] = ISA(tq1_0),
    [TYPE_TQ2_0] = ISA(tq2_0),
    [TYPE_IQ3_S] = ISA(iq3_s),
    [TYPE_IQ3_XXS] = ISA(iq3_xxs),
    [TYPE_IQ2_XXS] = ISA(iq2_xxs),
    [TYPE_IQ2_XS] = ISA(iq2_xs),
    [TYPE_IQ2_S] = ISA(iq2_s),
    [TYPE_IQ1_S] = ISA(iq1_s),
    [TYPE_IQ1_M] = ISA(iq1_m),
    [TYPE_Q8_0] = ISA(q8_0),
    [TYPE_Q4_K] = ISA(q4_k),
    [TYPE_Q5_K] = ISA(q5_k),
    [TYPE_Q6_K] = ISA(q6_k),
};
