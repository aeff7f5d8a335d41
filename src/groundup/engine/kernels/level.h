// Everything that is compiled once for every instruction set: kernels.cpp includes this file inside a namespace each.
#include "lanes.h"
#include "arithmetic.h"
#include "peaks.h"
#if GROUNDUP_LEVEL >= 4
#include "matrix_registers.h"
#endif
#include "linear.h"
#if GROUNDUP_LEVEL >= 4
#include "floating_matrix.h"
#endif
#include "floating.h"
#include "low_rank.h"
#include "pointwise.h"
#include "blocks.h"
#include "store.h"
#include "attention.h"
#include "choose.h"

#undef INLINE
#undef INLINE_MEMBER

constexpr Kernels kernels = {
    quantize, round_items, round_to_pairs, linear_items,
    {linear<true>, linear<false>, linear_rows<kFloat32>, linear_rows<kBfloat16>, linear_rows<kFloat16>,
     linear_rows<kWideBfloat16>}, down_items, down, up_items, up, norm, rope, activate, add, mix, gate, combine, choose,
    store, attention_items, attend,
};
