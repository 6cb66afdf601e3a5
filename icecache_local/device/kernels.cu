/* Moves rows between llama.cpp's cells and staging buffers, and keeps the online softmax
 * (FlashAttention, arXiv 2205.14135) between two matrix products. Compiled at run time, so there
 * are no includes; rows are moved in words of 16 bytes, which divide every row of 8 f16 values. */

#define EXPORT extern "C" __global__ void

#ifndef TO_F16 /* tests run these kernels on the CPU and bring their own */
static __device__ __forceinline__ unsigned short to_f16(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
static __device__ __forceinline__ float from_f16(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
#endif

static __device__ __forceinline__ long long first_item(void) {
    return (long long) blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ long long step(void) {
    return (long long) gridDim.x * blockDim.x;
}

/* Row i of n goes to row target[i] (cell * heads + head) of the cells. */
EXPORT scatter_rows(const uint4 *k_rows, const uint4 *v_rows, const int *target, int n,
                    int k_words, int v_words, uint4 *k_cells, uint4 *v_cells) {
    const int words = k_words + v_words;
    for (long long i = first_item(); i < (long long) n * words; i += step()) {
        const int row = (int) (i / words), word = (int) (i % words);
        const long long to = target[row];
        if (word < k_words) {
            k_cells[to * k_words + word] = k_rows[(long long) row * k_words + word];
        } else {
            const int w = word - k_words;
            v_cells[to * v_words + w] = v_rows[(long long) row * v_words + w];
        }
    }
}

/* Cell cells[i] becomes row i: all heads of it, `words` words. */
EXPORT gather_cells(const uint4 *source, const long long *cells, int n, int words, uint4 *out) {
    for (long long i = first_item(); i < (long long) n * words; i += step()) {
        out[i] = source[cells[i / words] * words + i % words];
    }
}

/* Three spans one behind the other: the newest query, and its token's K and V. */
EXPORT concatenate(const uint4 *a, int a_words, const uint4 *b, int b_words, const uint4 *c,
                   int c_words, uint4 *out) {
    for (long long i = first_item(); i < a_words + b_words + c_words; i += step()) {
        out[i] = i < a_words             ? a[i]
                 : i < a_words + b_words ? b[i - a_words]
                                         : c[i - a_words - b_words];
    }
}

/* Queries of any strides (in bytes) as f16 [heads][tokens][dim], times the factor of the logits. */
EXPORT load_queries(const char *q, long long q_token, long long q_head, int n_tokens, int n_heads,
                    int dim, float scale, unsigned short *out) {
    const long long count = (long long) n_heads * n_tokens * dim;
    for (long long i = first_item(); i < count; i += step()) {
        const long long row = i / dim, token = row % n_tokens, head = row / n_tokens;
        const float *from = (const float *) (q + token * q_token + head * q_head);
        out[i] = to_f16(from[i % dim] * scale);
    }
}

/* Largest logit and sum of weights before any key: nothing, or an attention sink's logit. */
EXPORT start_softmax(const float *sinks, int n_tokens, int n_heads, float *top, float *sum) {
    for (long long i = first_item(); i < (long long) n_heads * n_tokens; i += step()) {
        top[i] = sinks ? sinks[i / n_tokens] : -1e30f; /* finite: differences stay defined */
        sum[i] = sinks ? 1.0f : 0.0f;
    }
}

static __device__ float block_reduce(float x, float *shared, bool maximum) {
    shared[threadIdx.x] = x;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if ((int) threadIdx.x < half) {
            const float other = shared[threadIdx.x + half];
            const float own = shared[threadIdx.x];
            shared[threadIdx.x] = maximum ? fmaxf(own, other) : own + other;
        }
        __syncthreads();
    }
    const float result = shared[0];
    __syncthreads();
    return result;
}

/* One block of keys: logits [rows][stride] become weights in f16, and `top`, `sum` and the
 * unnormalised output [rows][dim] of each row are brought to the new largest logit. A thread
 * block, a power of two of threads, works on one row; rows are [heads][tokens].
 * first_key < 0: a row sees the first n_keys[KV head] columns. Otherwise column j is token
 * first_key + j of the ubatch, and a row sees its own token and those before. */
EXPORT softmax_block(float *logits, unsigned short *weights, int n_columns, int stride,
                     const int *n_keys, int first_key, int n_tokens, int group, float softcap,
                     float *top, float *sum, float *out, int dim) {
    __shared__ float shared[256];
    const long long row = blockIdx.x;
    const int token = (int) (row % n_tokens), head = (int) (row / n_tokens);
    const int seen = first_key < 0 ? n_keys[head / group] : token + 1 - first_key;
    const int visible = seen < 0 ? 0 : seen < n_columns ? seen : n_columns;
    float *s = logits + row * stride;
    unsigned short *p = weights + row * stride;

    float largest = top[row];
    for (int j = threadIdx.x; j < visible; j += blockDim.x) {
        if (softcap != 0.0f) {
            s[j] = softcap * tanhf(s[j] / softcap);
        }
        largest = fmaxf(largest, s[j]);
    }
    largest = block_reduce(largest, shared, true);

    float total = 0.0f;
    for (int j = threadIdx.x; j < n_columns; j += blockDim.x) {
        const unsigned short weight = j < visible ? to_f16(expf(s[j] - largest)) : 0;
        p[j] = weight;
        total += from_f16(weight); /* the sum of what is multiplied with V */
    }
    total = block_reduce(total, shared, false);

    const float factor = expf(top[row] - largest);
    __syncthreads(); /* all have read top[row] */
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
        out[row * dim + d] *= factor;
    }
    if (threadIdx.x == 0) {
        top[row] = largest;
        sum[row] = sum[row] * factor + total;
    }
}

/* Output over the sum of its weights, to rows of any strides in bytes. */
EXPORT write_output(const float *acc, const float *sum, int n_tokens, int n_heads, int dim,
                    char *out, long long out_token, long long out_head) {
    const long long count = (long long) n_heads * n_tokens * dim;
    for (long long i = first_item(); i < count; i += step()) {
        const long long row = i / dim, token = row % n_tokens, head = row / n_tokens;
        float *to = (float *) (out + token * out_token + head * out_head);
        to[i % dim] = acc[i] / sum[row];
    }
}
