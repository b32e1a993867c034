/* A clock that stands still between an agent's steps; preloaded into the game (LD_PRELOAD).
 *
 * The game's time is a number in a file (CLOCK_FILE) that the driving program has mapped too. A sleeping thread sleeps
 * until that number is large enough. The main thread draws one picture and sleeps: `asleep` and `until` say so, `naps`
 * counts it. Three threads of the same process wait for work: the server for messages, one for parts of the map to turn
 * into triangles, one for parts of the map to load or generate. `gate` says who has to keep waiting, so that they never run
 * while the client draws, and the map never grows while the server makes its step.
 *
 *     cc -O2 -shared -fPIC -o clock.so clock.c
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define DAY0 1700000000LL            /* the date at which every game starts */
#define UP0 1000LL                   /* seconds since the machine was started */

struct shared {                      /* the notebook luanti/clock has the same fields in the same order */
    _Atomic int64_t now;             /* the game's time in ns */
    _Atomic int64_t until;           /* when the main thread wants to wake */
    _Atomic int64_t sent, received;  /* datagrams; where they differ, some are on their way */
    _Atomic int32_t tick;            /* changes with the time: sleepers wait for this word */
    _Atomic int32_t any;             /* changes with the time and with every sem_post */
    _Atomic int32_t asleep, naps;    /* of the main thread */
    _Atomic int32_t gate;            /* who has to wait, a sum of SERVER, MESH, EMERGE */
    _Atomic int32_t due;             /* the emerge thread has work, and waits at the gate */
};
static struct shared local, *C = &local;
static int jitter;                   /* CLOCK_JITTER: us that a thread may lose where it meets another; a test of repeatability */

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("CLOCK_FILE");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *m = mmap(0, sizeof local, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (m != MAP_FAILED) C = m;
    if (getenv("CLOCK_JITTER")) jitter = atoi(getenv("CLOCK_JITTER"));
}

static int64_t real_us(void) {
    struct timespec t;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
    return t.tv_sec*1000000LL + t.tv_nsec/1000;
}
static void dawdle(void) {           /* at work all the while: a thread that slept would count as idle */
    static __thread unsigned seed;
    if (!jitter) return;
    if (!seed) seed = real_us() ^ syscall(SYS_gettid) << 20;
    if (rand_r(&seed) % 4) return;
    for (int64_t end = real_us() + rand_r(&seed) % jitter; real_us() < end;);
}

static void wait_for(_Atomic int32_t *word, int seen) { syscall(SYS_futex, word, FUTEX_WAIT, seen, 0, 0, 0); }
static void wake(_Atomic int32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, 9999, 0, 0, 0); }

/* ---- sleeping ---- */

static int is_main_thread(void) {
    static __thread int known;
    if (!known) known = getpid() == syscall(SYS_gettid) ? 1 : 2;
    return known == 1;
}

static void sleep_until(int64_t until) {
    int is_main = is_main_thread();
    if (is_main) { C->until = until; C->asleep = 1; C->naps++; wake(&C->naps); }
    for (;;) {
        int seen = C->tick;
        if (C->now >= until) break;
        wait_for(&C->tick, seen);
    }
    if (is_main) C->asleep = 0;
}

int nanosleep(const struct timespec *t, struct timespec *left) {
    sleep_until(C->now + t->tv_sec*NS + t->tv_nsec);
    if (left) left->tv_sec = left->tv_nsec = 0;
    return 0;
}
int clock_nanosleep(clockid_t c, int flags, const struct timespec *t, struct timespec *left) {
    int64_t v = t->tv_sec*NS + t->tv_nsec;
    if (flags & TIMER_ABSTIME) sleep_until(v - (c == CLOCK_REALTIME ? DAY0 : UP0)*NS);
    else nanosleep(t, left);
    return 0;
}
int usleep(useconds_t us) { sleep_until(C->now + us*1000LL); return 0; }
unsigned sleep(unsigned s) { sleep_until(C->now + s*NS); return 0; }

/* ---- what time is it? ----
 * Luanti from 5.8 on sleeps a little too short, and asks for the time until it is right. Whoever has asked SPIN times at one
 * moment is given a microsecond with each further question. */

enum {SPIN = 20000};
static void spin(void) {
    static int64_t last;
    static int asked;
    if (!is_main_thread()) return;
    if (C->now != last) { last = C->now; asked = 0; }
    if (++asked > SPIN) { C->now += 1000; last = C->now; }
}

int clock_gettime(clockid_t c, struct timespec *t) {
    int64_t base;
    spin();
    switch (c) {
        case CLOCK_REALTIME: case CLOCK_REALTIME_COARSE: base = DAY0; break;
        case CLOCK_MONOTONIC: case CLOCK_MONOTONIC_RAW: case CLOCK_MONOTONIC_COARSE: case CLOCK_BOOTTIME: base = UP0; break;
        default: return syscall(SYS_clock_gettime, c, t);
    }
    int64_t v = C->now + base*NS;
    t->tv_sec = v/NS; t->tv_nsec = v%NS;
    return 0;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    spin();
    int64_t v = C->now + DAY0*NS;
    t->tv_sec = v/NS; t->tv_usec = v%NS/1000;
    return 0;
}
time_t time(time_t *t) {
    time_t v = C->now/NS + DAY0;
    if (t) *t = v;
    return v;
}

/* ---- chance ----
 * LuaJIT asks the kernel for random bytes, on which the order depends in which Lua walks through a table. */

long syscall(long n, ...) {
    static long (*real)(long, ...);
    if (!real) real = dlsym(RTLD_NEXT, "syscall");
    va_list list;
    va_start(list, n);
    long a[6];
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    if (n != SYS_getrandom) return real(n, a[0], a[1], a[2], a[3], a[4], a[5]);
    memset((void *)a[0], 42, a[1]);
    return a[1];
}

/* ---- waiting for another thread ---- */

enum {SERVER = 1, MESH = 2, EMERGE = 4, OTHER = 8};
static int thread(void) {            /* which one is this? */
    static __thread int known;
    if (!known) {
        char name[16] = "";
        prctl(PR_GET_NAME, name);
        known = !strcmp(name, "Server") ? SERVER : !strncmp(name, "MeshUpdate", 10) ? MESH
            : !strncmp(name, "Emerge", 6) ? EMERGE : OTHER;
    }
    return known;
}
static int must_wait(void) { return C->gate & thread(); }

int sem_post(sem_t *s) {
    static int (*real)(sem_t *);
    if (!real) real = dlsym(RTLD_NEXT, "sem_post");
    dawdle();
    int r = real(s);
    C->any++;
    wake(&C->any);
    dawdle();
    return r;
}
int sem_wait(sem_t *s) {
    static int (*real)(sem_t *);
    if (!real) real = dlsym(RTLD_NEXT, "sem_wait");
    if (thread() != MESH) return real(s);
    for (;;) {
        int seen = C->any;
        if (!must_wait() && !sem_trywait(s)) { dawdle(); return 0; }
        wait_for(&C->any, seen);
    }
}
/* The mesh thread waits here for a texture that only the main thread can make. It goes on when the gate is open: while the
 * client draws, it might be done before or after the client looks for new triangles. */
int sem_timedwait(sem_t *restrict s, const struct timespec *restrict t) {
    int64_t until = (t->tv_sec - DAY0)*NS + t->tv_nsec;
    for (;;) {
        int seen = C->any;
        if (must_wait()) { wait_for(&C->any, seen); continue; }
        if (!sem_trywait(s)) { dawdle(); return 0; }
        if (errno != EAGAIN && errno != EINTR) return -1;
        if (C->now >= until) { errno = ETIMEDOUT; return -1; }
        wait_for(&C->any, seen);
    }
}

/* The emerge thread waits here for its next order. The server gives it in the middle of a step; whether the new part of the
 * map was there before that step ended would be chance. */
int pthread_cond_wait(pthread_cond_t *restrict c, pthread_mutex_t *restrict m) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *);
    if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_wait", "GLIBC_2.3.2");   /* dlsym finds an older one on x86 */
    if (!real) real = dlsym(RTLD_NEXT, "pthread_cond_wait");
    int r = real(c, m);
    for (int seen; seen = C->any, must_wait() == EMERGE;) {
        C->due = 1;
        pthread_mutex_unlock(m);
        wait_for(&C->any, seen);
        pthread_mutex_lock(m);
    }
    dawdle();
    return r;
}

/* ---- the server's port ----
 * The game draws it from the time, which is the same in every game. The kernel gives a free one instead, and the game
 * keeps seeing the one it drew. */

static in_port_t drawn, given;
static int is_inet(const struct sockaddr *a, socklen_t n) { return a && n >= sizeof(struct sockaddr_in) && a->sa_family == AF_INET; }
static in_port_t *port(const void *a) { return &((struct sockaddr_in *)a)->sin_port; }

int bind(int fd, const struct sockaddr *a, socklen_t n) {
    int type = 0;
    socklen_t size = sizeof type;
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
    if (drawn || type != SOCK_DGRAM || !is_inet(a, n) || !*port(a)) return syscall(SYS_bind, fd, a, n);
    struct sockaddr_in copy = *(struct sockaddr_in *)a;
    drawn = copy.sin_port; copy.sin_port = 0;
    int r = syscall(SYS_bind, fd, &copy, sizeof copy);
    size = sizeof copy;
    if (!r && !getsockname(fd, (struct sockaddr *)&copy, &size)) given = copy.sin_port;
    return r;
}
ssize_t sendto(int fd, const void *data, size_t bytes, int flags, const struct sockaddr *a, socklen_t n) {
    if (!is_inet(a, n)) return syscall(SYS_sendto, fd, data, bytes, flags, a, n);
    struct sockaddr_in copy = *(struct sockaddr_in *)a;
    if (drawn && copy.sin_port == drawn) copy.sin_port = given;
    dawdle();
    C->sent++;                       /* before it leaves: it is never received without having been counted */
    ssize_t r = syscall(SYS_sendto, fd, data, bytes, flags, &copy, sizeof copy);
    if (r < 0) C->sent--;
    return r;
}
ssize_t recvfrom(int fd, void *restrict data, size_t bytes, int flags, struct sockaddr *restrict a, socklen_t *restrict n) {
    ssize_t r = syscall(SYS_recvfrom, fd, data, bytes, flags, a, n);
    if (r < 0 || !n || !is_inet(a, *n)) return r;
    dawdle();
    if (given && *port(a) == given) *port(a) = drawn;
    C->received++;
    return r;
}
