#include "cuda_on_host.h"

#include "../icecache_local/device/kernels.cu"

LAUNCHER(scatter_rows)
LAUNCHER(gather_cells)
LAUNCHER(concatenate)
LAUNCHER(load_queries)
LAUNCHER(start_softmax)
LAUNCHER(softmax_block)
LAUNCHER(write_output)
