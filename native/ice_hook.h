/* The hook that llama.cpp's scheduler calls for every node of a graph (cb_eval).
 *
 * It looks for two operations of each attention layer: SET_ROWS, which writes the new K and V rows
 * into the cells, and FLASH_ATTN_EXT, which reads them. What it finds is left in `layers[i]`, and
 * `on_layer` is called at the one moment at which the layer's cache may act:
 *
 *   ICE_WATCH    never; the addresses and cell numbers are only noted
 *   ICE_DECODE   after SET_ROWS of V has run and before attention runs: cells may be overwritten
 *                (a reader waits for its Q instead, since an earlier layer has written the cells)
 *   ICE_PREFILL  after attention has run: its output may be overwritten
 */
#ifndef ICE_HOOK_H
#define ICE_HOOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ICE_WATCH = 0, ICE_DECODE = 1, ICE_PREFILL = 2 };

enum {
    ICE_OK = 0,
    ICE_LISTENER_FAILED = 1, /* on_layer returned non-zero */
    ICE_BAD_GRAPH = 2        /* a graph that the hook does not understand */
};

/* All strides in bytes. Addresses are those of ggml_tensor.data: where a buffer is not in host
 * memory they may not be read here. */
typedef struct ice_layer {
    int32_t layer;   /* whose cells are read */
    int32_t seen;    /* times this attention was met in the current decode */
    int32_t n_tokens, n_heads, n_kv_heads, dk, dv;
    int32_t n_cells; /* rows of cache_k_l<i> */
    float scale, max_bias, softcap;
    const float *q;
    int64_t q_token, q_head;
    float *out;
    int64_t out_token, out_head;
    void *k_cells, *v_cells;
    int64_t k_cell, v_cell, k_head, v_head;
    int32_t k_type, v_type;
    void *k_buffer, *v_buffer, *q_buffer, *out_buffer; /* ggml_backend_buffer_t */
    const float *sinks;
    /* The tensors themselves; K and V are whole caches, Q and output live as long as the graph. */
    void *k_tensor, *v_tensor, *q_tensor, *out_tensor, *sinks_tensor;
    const void *mask;    /* the tensor: layers with a sliding window have one of their own */
    int32_t skip;        /* set by the listener: this layer is llama.cpp's own business */
    int32_t v_in_k;      /* V is a part of the K cells (multi-head latent attention) */
    char q_node[64];     /* name of the operation that makes Q */
} ice_layer;

typedef struct ice_hook {
    int32_t mode;
    int32_t error;
    int32_t n_layers;
    ice_layer *layers;         /* [2 * n_layers] first by layer number, then the readers: attention
                                  that reads the cells of a layer once more, in graph order */
    int32_t n_readers;         /* met in the current decode */
    int32_t n_known;           /* most that were met in an earlier one */
    int32_t current;           /* place in `layers` of the attention that is being computed */
    int64_t *cells;            /* [cells_capacity] cells of the current ubatch, in position order */
    int32_t cells_capacity;
    int32_t n_cells;           /* how many of them are valid */
    int32_t ready;             /* the cells are written and Q is known; only views came since */
    int (*on_layer)(void *listener, int32_t place);
    void *listener;
    /* ggml_backend_tensor_get: cell numbers may lie in device memory too */
    void (*tensor_get)(const void *tensor, void *data, size_t offset, size_t size);
} ice_hook;

/* What the shim was compiled with, to be compared with the libraries that are loaded. */
typedef struct ice_build {
    int64_t tensor_size;
    int64_t context_params_size;
    int64_t model_params_size;
    int32_t op_set_rows;
    int32_t op_flash_attn_ext;
    int32_t type_f16;
} ice_build;

void ice_build_info(ice_build *info);

/* Address of the callbacks, to be set as cb_eval and abort_callback with the hook as user data. */
void *ice_eval_callback(void);
void *ice_abort_callback(void);

/* Called before every llama_decode. */
void ice_hook_begin(ice_hook *hook, int32_t mode);

#endif
