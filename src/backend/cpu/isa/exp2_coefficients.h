/* 2^f = 1 + f (C1 + f (C2 + …)) for |f| <= 1/2: minimax in relative error, 1e-7. */
#ifndef MSA_CPU_EXP2_COEFFICIENTS_H
#define MSA_CPU_EXP2_COEFFICIENTS_H

#define EXP2_C1 0x1.62e42ap-1f
#define EXP2_C2 0x1.ebf9bcp-3f
#define EXP2_C3 0x1.c6b752p-5f
#define EXP2_C4 0x1.3cea88p-7f
#define EXP2_C5 0x1.5bba14p-10f

/* Of degree 3, 1e-4: for weights that are rounded to bf16, whose own error is 2e-3. */
#define EXP2_COARSE_C1 0x1.62f5fap-1f
#define EXP2_COARSE_C2 0x1.f00c4cp-3f
#define EXP2_COARSE_C3 0x1.c2a216p-5f

/* Adding it rounds a small number to an integer, which then is the low bits of the sum. */
#define EXP2_TO_INTEGER 0x1.8p23f

/* Below this 2^x is taken as zero; x = -inf must not reach the polynomial. */
#define EXP2_LOWEST -126.0f

#endif
