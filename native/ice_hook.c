#include "ice_hook.h"

#include <stdlib.h>
#include <string.h>

#include "ggml.h"
#include "llama.h"

static const char K_CELLS[] = "cache_k_l";
static const char V_CELLS[] = "cache_v_l";

static const struct ggml_tensor *root(const struct ggml_tensor *t) {
    while (t != NULL && t->view_src != NULL) {
        t = t->view_src;
    }
    return t;
}

/* Layer number of a cell tensor, -1 for any other tensor. */
static int32_t cells_layer(const struct ggml_tensor *t, const char *prefix) {
    size_t length = strlen(prefix);
    if (t == NULL || strncmp(t->name, prefix, length) != 0) {
        return -1;
    }
    return (int32_t) strtol(t->name + length, NULL, 10);
}

/* Views cost nothing: they do not stand between writing the cells and reading them. */
static bool is_view(const struct ggml_tensor *t) {
    switch (t->op) {
        case GGML_OP_NONE:
        case GGML_OP_VIEW:
        case GGML_OP_RESHAPE:
        case GGML_OP_PERMUTE:
        case GGML_OP_TRANSPOSE:
            return true;
        default:
            return false;
    }
}

static void note_cells(ice_hook *hook, const struct ggml_tensor *set_rows) {
    const struct ggml_tensor *idx = set_rows->src[1];
    if (hook->n_cells != 0) {
        return;
    }
    if (idx->type != GGML_TYPE_I64 || idx->data == NULL || idx->ne[0] > hook->cells_capacity) {
        hook->error = ICE_BAD_GRAPH;
        return;
    }
    hook->tensor_get(idx, hook->cells, 0, (size_t) idx->ne[0] * sizeof(int64_t));
    hook->n_cells = (int32_t) idx->ne[0];
}

static float op_param_f32(const struct ggml_tensor *t, int i) {
    float value;
    memcpy(&value, (const char *) t->op_params + (size_t) i * sizeof(value), sizeof(value));
    return value;
}

static ice_layer *note_attention(ice_hook *hook, const struct ggml_tensor *t) {
    const struct ggml_tensor *q = t->src[0], *k = t->src[1], *v = t->src[2], *sinks = t->src[4];
    const struct ggml_tensor *k_root = root(k), *v_root = root(v);
    int32_t layer = cells_layer(k_root, K_CELLS);
    const bool v_in_k = v_root == k_root;
    if (layer < 0 || layer >= hook->n_layers ||
        (!v_in_k && layer != cells_layer(v_root, V_CELLS)) ||
        q->type != GGML_TYPE_F32 || t->type != GGML_TYPE_F32 || q->ne[3] != 1) {
        hook->error = ICE_BAD_GRAPH;
        return NULL;
    }
    int32_t place = layer;
    if (hook->layers[layer].seen) {
        if (hook->n_readers == hook->n_layers) {
            hook->error = ICE_BAD_GRAPH;
            return NULL;
        }
        place = hook->n_layers + hook->n_readers++;
    }
    ice_layer *e = &hook->layers[place];
    hook->current = place;
    e->layer = layer;
    e->skip = hook->layers[layer].skip;
    e->seen += 1;
    e->dk = (int32_t) q->ne[0];
    e->n_tokens = (int32_t) q->ne[1];
    e->n_heads = (int32_t) q->ne[2];
    e->n_kv_heads = (int32_t) k->ne[2];
    e->dv = (int32_t) v->ne[0];
    e->n_cells = (int32_t) k_root->ne[1];
    e->scale = op_param_f32(t, 0);
    e->max_bias = op_param_f32(t, 1);
    e->softcap = op_param_f32(t, 2);
    e->q = q->data;
    e->q_token = (int64_t) q->nb[1];
    e->q_head = (int64_t) q->nb[2];
    e->out = t->data;
    e->out_head = (int64_t) t->nb[1];
    e->out_token = (int64_t) t->nb[2];
    e->k_cells = k_root->data;
    e->v_cells = v_in_k ? (char *) k_root->data + ((char *) v->data - (char *) k->data)
                        : v_root->data;
    e->k_cell = (int64_t) k->nb[1];
    e->v_cell = (int64_t) v->nb[1];
    e->k_head = (int64_t) k->nb[2];
    e->v_head = (int64_t) v->nb[2];
    e->k_type = k->type;
    e->v_type = v->type;
    e->k_buffer = k_root->buffer;
    e->v_buffer = v_root->buffer;
    e->q_buffer = root(q)->buffer;
    e->out_buffer = root(t)->buffer;
    e->sinks = sinks != NULL ? sinks->data : NULL;
    e->k_tensor = (void *) k_root;
    e->v_tensor = (void *) v_root;
    e->q_tensor = (void *) q;
    e->out_tensor = (void *) t;
    e->sinks_tensor = (void *) sinks;
    e->mask = t->src[3];
    e->v_in_k = v_in_k;
    while (q->src[0] != NULL && is_view(q)) {
        q = q->src[0];
    }
    strncpy(e->q_node, q->name, sizeof(e->q_node) - 1);
    return e;
}

static void call_listener(ice_hook *hook) {
    if (hook->on_layer(hook->listener, hook->current) != 0 && hook->error == ICE_OK) {
        hook->error = ICE_LISTENER_FAILED;
    }
}

/* Whether the cells of a layer are the listener's business. */
static bool is_taken(const ice_hook *hook, int32_t layer) {
    return layer >= 0 && layer < hook->n_layers && !hook->layers[layer].skip;
}

/* Whether a node makes the Q of a reader, as seen in the decode before. */
static bool is_reader_q(const ice_hook *hook, const struct ggml_tensor *t) {
    for (int32_t i = hook->n_layers; i < hook->n_layers + hook->n_known; i++) {
        if (!hook->layers[i].skip && strcmp(t->name, hook->layers[i].q_node) == 0) {
            return true;
        }
    }
    return false;
}

/* The question before a node is computed. True ends the sub-graph at this node, which costs a
 * synchronize: it is answered once per attention, and only outside ICE_WATCH. */
static bool ask(ice_hook *hook, const struct ggml_tensor *t) {
    if (t->op == GGML_OP_SET_ROWS) {
        const struct ggml_tensor *cells = root(t);
        const int32_t k_layer = cells_layer(cells, K_CELLS), v_layer = cells_layer(cells, V_CELLS);
        hook->ready = 0;
        if (is_taken(hook, k_layer)) {
            note_cells(hook, t);
            return hook->mode == ICE_DECODE && hook->layers[k_layer].v_in_k;
        }
        return hook->mode == ICE_DECODE && is_taken(hook, v_layer);
    }
    if (t->op == GGML_OP_FLASH_ATTN_EXT) {
        const ice_layer *e = note_attention(hook, t);
        if (e == NULL || e->skip || hook->mode == ICE_WATCH) {
            return false;
        }
        if (hook->mode == ICE_PREFILL) {
            return true;
        }
        /* Asked before it is computed: Q is ready and the cells may still be changed. */
        if (!hook->ready) {
            hook->error = ICE_BAD_GRAPH;
            return false;
        }
        hook->ready = 0;
        call_listener(hook);
        return false;
    }
    if (is_view(t)) {
        return false;
    }
    hook->ready = 0;
    return hook->mode == ICE_DECODE && is_reader_q(hook, t);
}

static bool ice_eval(struct ggml_tensor *t, bool asking, void *user) {
    ice_hook *hook = user;
    if (hook->error != ICE_OK) {
        return asking; /* stop at the next node, then leave the graph */
    }
    if (asking) {
        return ask(hook, t);
    }
    if (t->op == GGML_OP_FLASH_ATTN_EXT) {
        call_listener(hook);
    } else {
        hook->ready = 1;
    }
    return hook->error == ICE_OK;
}

static bool ice_abort(void *user) {
    return ((const ice_hook *) user)->error != ICE_OK;
}

void *ice_eval_callback(void) {
    return (void *) ice_eval;
}

void *ice_abort_callback(void) {
    return (void *) ice_abort;
}

void ice_hook_begin(ice_hook *hook, int32_t mode) {
    hook->mode = mode;
    hook->error = ICE_OK;
    hook->n_cells = 0;
    hook->ready = 0;
    if (hook->n_known < hook->n_readers) {
        hook->n_known = hook->n_readers;
    }
    hook->n_readers = 0;
    for (int32_t i = 0; i < 2 * hook->n_layers; i++) {
        hook->layers[i].seen = 0;
    }
}

void ice_build_info(ice_build *info) {
    info->tensor_size = (int64_t) sizeof(struct ggml_tensor);
    info->context_params_size = (int64_t) sizeof(struct llama_context_params);
    info->model_params_size = (int64_t) sizeof(struct llama_model_params);
    info->op_set_rows = GGML_OP_SET_ROWS;
    info->op_flash_attn_ext = GGML_OP_FLASH_ATTN_EXT;
    info->type_f16 = GGML_TYPE_F16;
}
