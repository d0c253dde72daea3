/* EdgeSparse kernels: compute from packed weights. C++17 inside, a plain C interface, no dependency.
 *
 * A matrix of N rows and K columns in one of the layouts of edgesparse/formats/<name>.md is opened
 * once, which checks its bytes; after that no function reads or writes outside of the buffers given
 * to it. Nothing here allocates, keeps state between calls, throws, or starts a thread: the caller
 * divides the tiles among its own threads.
 */
#ifndef EDGESPARSE_KERNELS_H
#define EDGESPARSE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EDGESPARSE_API
#else
#define EDGESPARSE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Version of this interface; a change that breaks callers is a new one. */
#define EDGESPARSE_ABI 2

#define EDGESPARSE_TILE_ROWS 16

typedef enum edgesparse_status {
  EDGESPARSE_OK = 0,
  EDGESPARSE_INVALID_ARGUMENT = 1, /* a null pointer, a negative size, an index outside */
  EDGESPARSE_CORRUPT_PACK = 2,     /* buffers that contradict the shape or each other */
  EDGESPARSE_UNSUPPORTED = 3       /* see edgesparse_supports */
} edgesparse_status;

/* How activations enter the product. */
typedef enum edgesparse_activations {
  EDGESPARSE_FLOAT32 = 0, /* exact up to the order of summation */
  EDGESPARSE_INT8 = 1,    /* rounded to 8 bits, one scale for every group of the weight */
  EDGESPARSE_INT16 = 2    /* rounded to 16 bits in two planes of 8 */
} edgesparse_activations;

typedef enum edgesparse_isa {
  EDGESPARSE_SCALAR = 0,
  EDGESPARSE_AVX2 = 1,   /* with FMA */
  EDGESPARSE_AVX512 = 2, /* with BW, VL, VBMI2, VNNI */
  EDGESPARSE_NEON = 3,   /* AArch64 */
  EDGESPARSE_DOTPROD = 4, /* NEON with the dot product instructions */
  EDGESPARSE_I8MM = 5     /* with those that multiply matrices of int8, too */
} edgesparse_isa;

/* The layouts, named as their byte maps are; all but the first two have 4-bit codes. */
typedef enum edgesparse_layout {
  EDGESPARSE_BITMASK = 0,
  EDGESPARSE_DENSE = 1,
  EDGESPARSE_NM4 = 2,
  EDGESPARSE_N64 = 3,
  EDGESPARSE_COLUMN16 = 4,
  EDGESPARSE_BLOCK16X8 = 5
} edgesparse_layout;

typedef struct edgesparse_buffer {
  const void* data; /* any alignment */
  size_t nbytes;
} edgesparse_buffer;

/* The buffers of a pack by name; those a layout does not have are {NULL, 0}. */
typedef struct edgesparse_pack {
  int64_t rows;
  int64_t columns;
  int64_t group_size; /* columns per scale; 0 with 16 bits */
  int32_t bits;       /* 2, 3, 4, 8, or 16 for float16 values */
  int32_t layout;     /* an edgesparse_layout */
  edgesparse_buffer mask; /* of column16 `columns`, of block16x8 `octets` */
  edgesparse_buffer offsets;
  edgesparse_buffer codes;
  edgesparse_buffer offsets_high;
  edgesparse_buffer codes_high;
  edgesparse_buffer scales;
  edgesparse_buffer index;
} edgesparse_pack;

/* A checked pack. Points into its buffers, which must outlive it; fields are private. */
typedef struct edgesparse_matrix {
  int64_t rows, columns, group_size, groups, quads, tiles;
  int32_t bits, layout, of_64;
  const uint8_t *mask, *offsets, *codes, *offsets_high, *codes_high, *scales, *index;
} edgesparse_matrix;

/* Check the buffers of a pack and describe it in `matrix`. Time: one pass over the mask. */
EDGESPARSE_API edgesparse_status edgesparse_open(const edgesparse_pack* pack,
                                                 edgesparse_matrix* matrix);

/* Whether `activations` work with this matrix: integers need groups of whole quads of columns and
 * integer codes. 1 or 0. */
EDGESPARSE_API int edgesparse_supports(const edgesparse_matrix* matrix,
                                       edgesparse_activations activations);

/* Bytes of workspace for `batch` rows of activations. */
EDGESPARSE_API size_t edgesparse_workspace_nbytes(const edgesparse_matrix* matrix, int64_t batch,
                                                  edgesparse_activations activations);

/* Bring x [batch][columns] into `workspace` in the form the product wants. */
EDGESPARSE_API edgesparse_status edgesparse_prepare(const edgesparse_matrix* matrix, const float* x,
                                                    int64_t batch,
                                                    edgesparse_activations activations,
                                                    void* workspace);

/* out[m][n] = bias[n] + sum over k of x[m][k] * weight[n][k], for the rows of the tiles
 * [first_tile, last_tile); bias may be NULL. Tiles may be computed at the same time by several
 * threads from one workspace. */
EDGESPARSE_API edgesparse_status edgesparse_linear(const edgesparse_matrix* matrix,
                                                   const void* workspace, int64_t batch,
                                                   edgesparse_activations activations,
                                                   int64_t first_tile, int64_t last_tile,
                                                   const float* bias, float* out);

/* out[i] = row indices[i] of the weight, float32 [count][columns]. */
EDGESPARSE_API edgesparse_status edgesparse_embedding(const edgesparse_matrix* matrix,
                                                      const int64_t* indices, int64_t count,
                                                      float* out);

/* Attention of `tokens` new tokens over a cache, for one sequence. Query heads share cached heads in
 * equal groups, in order. */
typedef struct edgesparse_attention {
  int64_t heads, cached_heads, tokens, positions, width; /* width: dimensions of a head */
  int32_t byte_cache; /* 0: float32 rows; 1: rows of `width` int8 and one float32, their scale */
  float scaling;      /* of the products of queries and keys */
  const float* query; /* [heads][tokens][width] */
  const void* keys;   /* [cached_heads][positions] rows, of any alignment */
  const void* values; /* likewise */
  const float* mask;  /* [tokens][positions], added to the scaled products; or NULL. Positions with
                         less than -1e30 are neither read nor counted. */
  float* out;         /* [tokens][heads][width] */
} edgesparse_attention;

/* Bytes of workspace for the cached heads of one thread. */
EDGESPARSE_API size_t edgesparse_attention_workspace_nbytes(const edgesparse_attention* attention);

/* out = softmax(scaling * query keys' + mask) values, for the query heads of the cached heads
 * [first_head, last_head). The same bits on every processor. */
EDGESPARSE_API edgesparse_status edgesparse_attend(const edgesparse_attention* attention,
                                                   int64_t first_head, int64_t last_head,
                                                   void* workspace);

/* Rows of a byte cache: out[r] is `width` int8, then the float32 largest |x[r]| / 127. */
EDGESPARSE_API edgesparse_status edgesparse_quantize_rows(const float* x, int64_t rows,
                                                          int64_t width, int8_t* out);

/* The instruction set in use, the best this processor has; and whether one can be chosen instead. */
EDGESPARSE_API edgesparse_isa edgesparse_current_isa(void);
EDGESPARSE_API edgesparse_status edgesparse_choose_isa(edgesparse_isa isa);

#ifdef __cplusplus
}
#endif
#endif
