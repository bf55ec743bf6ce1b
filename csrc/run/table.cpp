#include "isas.h"
#include "kernels.h"

namespace bitsmith {

#define BITSMITH_DECLARE(isa)    \
  namespace isa {                \
  extern const Kernels kKernels; \
  }
BITSMITH_ISAS(BITSMITH_DECLARE)
#undef BITSMITH_DECLARE

const Kernels &kernels(Isa isa) {
  switch (isa) {
#define BITSMITH_CASE(isa) \
  case Isa::isa: return isa::kKernels;
    BITSMITH_ISAS(BITSMITH_CASE)
#undef BITSMITH_CASE
    default: return generic::kKernels;
  }
}

}  // namespace bitsmith
