#include "kernels.h"

namespace bitsmith {

namespace generic {
extern const Kernels kKernels;
}
#ifdef BITSMITH_HAS_avx2
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512bf16 {
extern const Kernels kKernels;
}
namespace avx512vnni {
extern const Kernels kKernels;
}
#endif

const Kernels &kernels(Isa isa) {
  switch (isa) {
#ifdef BITSMITH_HAS_avx2
    case Isa::avx512bf16: return avx512bf16::kKernels;
    case Isa::avx512vnni: return avx512vnni::kKernels;
    case Isa::avx512: return avx512::kKernels;
    case Isa::avx2: return avx2::kKernels;
#endif
    default: return generic::kKernels;
  }
}

}  // namespace bitsmith
