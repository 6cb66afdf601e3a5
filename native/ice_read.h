#ifndef ICE_READ_H
#define ICE_READ_H
#include <stdint.h>

/* Reads n records, each of `bytes` bytes at a multiple of `bytes` in the file, by several threads;
 * neighbours of up to `run` records in one request. numbers [n] ascend; record i goes to
 * out + at[i] * bytes. 0, or errno (EIO where the file is too short); then nothing is sure. */
int ice_read(int fd, const int64_t *numbers, const int64_t *at, int64_t n, uint8_t *out,
             int64_t bytes, int64_t run);

#endif
