/* Runs CUDA kernels on the CPU, one thread block after the other. A block's threads are
 * coroutines of one OS thread, so that __syncthreads() meets all of them and shared memory is
 * static. */
#pragma once
#include <immintrin.h>
#include <ucontext.h>

#include <cmath>
#include <functional>
#include <vector>

struct uint4 {
    unsigned x, y, z, w;
};
struct index3 {
    unsigned x = 0, y = 0, z = 0;
};
static index3 threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define TO_F16

static inline unsigned short to_f16(float x) { return _cvtss_sh(x, 0); }
static inline float from_f16(unsigned short bits) { return _cvtsh_ss(bits); }

namespace host {
enum { STACK = 64 << 10 };
static ucontext_t scheduler;
static ucontext_t *current;
static const std::function<void()> *body;
static bool finished;

static void enter() {
    (*body)();
    finished = true;
    swapcontext(current, &scheduler);
}

/* Every thread runs to its next barrier before any of them goes past it. */
static void launch(int grid, int block, const std::function<void()> &kernel) {
    body = &kernel;
    gridDim.x = grid, blockDim.x = block;
    std::vector<ucontext_t> threads(block);
    std::vector<std::vector<char>> stacks(block, std::vector<char>(STACK));
    for (int b = 0; b < grid; b++) {
        blockIdx.x = b;
        std::vector<bool> done(block, false);
        for (int t = 0; t < block; t++) {
            getcontext(&threads[t]);
            threads[t].uc_stack.ss_sp = stacks[t].data();
            threads[t].uc_stack.ss_size = STACK;
            threads[t].uc_link = nullptr;
            makecontext(&threads[t], enter, 0);
        }
        for (int left = block; left > 0;) {
            for (int t = 0; t < block; t++) {
                if (done[t]) continue;
                threadIdx.x = t, current = &threads[t], finished = false;
                swapcontext(&scheduler, current);
                if (finished) done[t] = true, left--;
            }
        }
    }
}

template <auto F> struct Launch;
template <class... A, void (*F)(A...)> struct Launch<F> {
    static void run(int grid, int block, A... args) {
        launch(grid, block, [=] { F(args...); });
    }
};
} // namespace host

static inline void __syncthreads() { swapcontext(host::current, &host::scheduler); }

#define LAUNCHER(name) extern "C" { void *launch_##name = (void *) &host::Launch<&name>::run; }
