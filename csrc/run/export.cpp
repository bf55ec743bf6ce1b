#include "products.h"

namespace bitsmith::BITSMITH_ISA {

extern const Kernels kKernels;
const Kernels kKernels = {repack,
                          round_row,
                          round_fine,
                          round_mixed,
                          to_fine,
                          panels_row,
                          panels_few,
                          panels_rows,
                          panels_exact,
                          panels_row_exact,
                          panels_columns,
                          panels_back,
                          floats_row,
                          floats_few,
                          floats_rows,
#if defined(__AVX512BF16__)
                          floats_rows_rounded,
                          to_bfloat,
#else
                          nullptr,       nullptr,
#endif
#if defined(__AMX_BF16__)
                          to_tiles,
                          panels_tiles,
                          floats_tiles,
#else
                          nullptr,       nullptr,       nullptr,
#endif
                          panels_decode,
                          floats_decode,
                          rms_norm,
                          swiglu,
                          geglu,
                          clamped_swiglu,
                          keep,
                          attend,
                          recur,
                          convolve,
                          gate_by,
                          read};

}  // namespace bitsmith::BITSMITH_ISA
