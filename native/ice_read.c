/* Parallel reads. A disk answers a request in the time in which Python hands over a few: with a
 * handful of pages to read per layer, as in decoding, that is what a step would wait for. The
 * caller reads too, so that it gets done whether or not the threads are there (they are not in a
 * forked child). */
#define _GNU_SOURCE
#include "ice_read.h"

#include <errno.h>

#ifdef _WIN32
int ice_read(int fd, const int64_t *numbers, const int64_t *at, int64_t n, uint8_t *out,
             int64_t bytes, int64_t run)
{
    return ENOSYS;
}
#else
#include <pthread.h>
#include <signal.h>
#include <sys/uio.h>
#include <unistd.h>

enum { N_THREADS = 16, MOST_PARTS = 512 }; /* more requests than cores keep an SSD busy */

typedef struct batch {
    int fd;
    const int64_t *numbers, *at;
    int64_t n, bytes, run;
    uint8_t *out;
    int64_t next; /* first record that nobody reads yet */
    int running, error;
    struct batch *later;
} batch_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static batch_t *waiting; /* have records that nobody reads yet */
static int n_threads;

static int read_run(const batch_t *b, int64_t first, int64_t last)
{
    struct iovec parts[MOST_PARTS];
    int n = (int)(last - first), i = 0;
    for (int k = 0; k < n; k++)
        parts[k] = (struct iovec){b->out + b->at[first + k] * b->bytes, (size_t)b->bytes};
    off_t offset = (off_t)(b->numbers[first] * b->bytes);
    while (i < n) {
        ssize_t got = preadv(b->fd, parts + i, n - i, offset);
        if (got == 0) return EIO;
        if (got < 0 && errno != EINTR) return errno;
        offset += got > 0 ? got : 0;
        for (; got > 0 && (size_t)got >= parts[i].iov_len; i++) got -= (ssize_t)parts[i].iov_len;
        if (got > 0) {
            parts[i].iov_base = (uint8_t *)parts[i].iov_base + got;
            parts[i].iov_len -= (size_t)got;
        }
    }
    return 0;
}

static void leave(batch_t *b)
{
    batch_t **link = &waiting;
    while (*link && *link != b) link = &(*link)->later;
    if (*link) *link = b->later;
}

/* Reads the next run; called and returns with the lock held. */
static void advance(batch_t *b)
{
    const int64_t first = b->next;
    int64_t last = first + 1;
    while (last < b->n && last - first < b->run && b->numbers[last] == b->numbers[last - 1] + 1)
        last++;
    b->next = last;
    if (last == b->n) leave(b);
    b->running++;
    pthread_mutex_unlock(&lock);
    const int error = read_run(b, first, last);
    pthread_mutex_lock(&lock);
    b->running--;
    if (error) {
        b->error = error;
        b->next = b->n; /* none goes on */
        leave(b);
    }
}

static void *work(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!waiting) pthread_cond_wait(&more, &lock);
        batch_t *b = waiting;
        advance(b);
        if (b->next == b->n && !b->running) pthread_cond_broadcast(&done);
    }
    return unused;
}

/* Signals stay with Python's threads. */
static void start_threads(void)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (pthread_t thread; n_threads < N_THREADS; n_threads++)
        if (pthread_create(&thread, &attributes, work, NULL)) break;
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

int ice_read(int fd, const int64_t *numbers, const int64_t *at, int64_t n, uint8_t *out,
             int64_t bytes, int64_t run)
{
    if (n < 1) return 0;
    batch_t b = {.fd = fd, .numbers = numbers, .at = at, .n = n, .bytes = bytes, .out = out};
    b.run = run < 1 ? 1 : run > MOST_PARTS ? MOST_PARTS : run;
    pthread_mutex_lock(&lock);
    if (n > 1 && !n_threads) start_threads();
    batch_t **link = &waiting;
    while (*link) link = &(*link)->later;
    *link = &b;
    for (int64_t i = 1; i < n && i < n_threads; i++) pthread_cond_signal(&more);
    while (b.next < b.n) advance(&b);
    while (b.running) pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
    return b.error;
}
#endif
