/* The floor in C: reads a stream's events from a socket and counts them, decoding nothing.
 *
 *   consume HOST PORT STREAM COUNT
 *
 * Speaks as the other peers do: one line on stdin that it has no use for, then a line for each round,
 * which is answered with the seconds that it took.
 */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];

static int dial(const char *host, const char *port) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    if (getaddrinfo(host, port, &hints, &found) != 0) exit(1);
    int fd = socket(found->ai_family, found->ai_socktype, 0);
    if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen) != 0) exit(1);
    freeaddrinfo(found);
    return fd;
}

static void say(int fd, const char *text) {
    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text)) exit(1);
}

/* Counts HMSG frames until there were `count`; the answer to the request is a plain MSG. */
static void consume(int fd, long count) {
    size_t held = 0;
    while (count > 0) {
        ssize_t got = read(fd, buffer + held, sizeof buffer - held);
        if (got <= 0) exit(1);
        held += (size_t)got;
        char *at = buffer, *end = buffer + held;
        for (;;) {
            char *eol = memchr(at, '\n', (size_t)(end - at));
            if (eol == NULL) break;
            char *body = eol + 1;
            if (memcmp(at, "HMSG ", 5) == 0 || memcmp(at, "MSG ", 4) == 0) {
                char *space = eol;
                while (*space != ' ') space--;
                long size = strtol(space, NULL, 10);
                if (end - body < size + 2) break;
                count -= *at == 'H';
                body += size + 2;
            } else if (memcmp(at, "PING", 4) == 0) {
                say(fd, "PONG\r\n");
            }
            at = body;
        }
        held = (size_t)(end - at);
        memmove(buffer, at, held);
    }
}

static double round_of(const char *host, const char *port, const char *stream, long count, int n) {
    char request[1024], body[512];
    struct timespec start, stop;
    int fd = dial(host, port);
    snprintf(body, sizeof body,
             "{\"stream_name\":\"%s\",\"config\":{\"deliver_subject\":\"floor.%d.%d\","
             "\"deliver_policy\":\"all\",\"ack_policy\":\"none\",\"mem_storage\":true,"
             "\"inactive_threshold\":10000000000}}",
             stream, (int)getpid(), n);
    snprintf(request, sizeof request,
             "CONNECT {\"verbose\":false,\"headers\":true}\r\nSUB floor.%d.%d 1\r\nSUB reply.%d 2\r\n"
             "PUB $JS.API.CONSUMER.CREATE.%s reply.%d %zu\r\n%s\r\n",
             (int)getpid(), n, (int)getpid(), stream, (int)getpid(), strlen(body), body);
    clock_gettime(CLOCK_MONOTONIC, &start);
    say(fd, request);
    consume(fd, count);
    clock_gettime(CLOCK_MONOTONIC, &stop);
    close(fd);
    return (double)(stop.tv_sec - start.tv_sec) + (double)(stop.tv_nsec - start.tv_nsec) / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    char line[4096];
    if (fgets(line, sizeof line, stdin) == NULL) return 1;
    for (int n = 0; fgets(line, sizeof line, stdin) != NULL; n++) {
        printf("%.6f\n", round_of(argv[1], argv[2], argv[3], atol(argv[4]), n));
        fflush(stdout);
    }
    return 0;
}
