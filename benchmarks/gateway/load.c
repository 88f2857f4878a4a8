// Load on an OpenAI-compatible server at 127.0.0.1: so many connections, each with one request after another.
//
//   load -p PORT -b FILE [-c CONNECTIONS] (-n REQUESTS | -d SECONDS)
//        [-H 'name: value']... [-u PATH] [-r RAMP_MS] [-t TIMEOUT_S]
//
// FILE has one request body a line; requests take them in turn. Sixteen # in a row, in a body or a header, become a
// number that no other request has. With -r the connections begin one after another over so many milliseconds. What
// has not ended TIMEOUT_S (60) seconds after the SECONDS is given up, and counted as unfinished.
//
// It prints one line of JSON: counts, and the quantiles (microseconds) of the whole answer ("latency"), of the first
// bytes of its body ("first"), of the time between reads that brought events of one stream ("gap"), and of an event's
// way through the gateway, where the mock backend stamps them ("delay"). It takes one core at most, and far less CPU
// than any gateway: it parses only what it must.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MARK_LENGTH = 16, MAX_MARKS = 8, MAX_REQUESTS = 1024, MAX_HEAD = 16384, MAX_SAMPLE = 200, MAX_EVENTS = 512 };
static const char MARK[] = "################";
static const char STAMP[] = "\"at:";  // then 19 digits: nanoseconds of the monotonic clock
enum { STAMP_DIGITS = 19 };

typedef struct {
    char *text;
    size_t length;
    size_t marks[MAX_MARKS];
    int mark_count;
} Request;

typedef enum { IDLE, HEAD, SIZED_BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, BODY_UNTIL_CLOSE, OVER } State;

typedef struct {
    int fd;
    State state;
    char head[MAX_HEAD];
    size_t head_length;
    int status, closes, failed;
    long remaining;  // bytes of the body, of the chunk, or of the trailer's line
    int line_ended;  // the last byte was a line break: another one ends an event
    long sent_at, first_at, event_at;
    char sample[MAX_SAMPLE];
    size_t sample_length;
} Connection;

typedef struct {
    long *values;
    size_t count, capacity;
} Times;

static int port, epoll_fd, connection_count = 1, timeout_s = 60;
static long wanted_requests, end_at;
static Request requests[MAX_REQUESTS];
static int request_count;
static long issued, done, errors, events, reconnects, running;
static Times latency, first, gap, delay;
static char error_sample[2 * MAX_SAMPLE];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void *must(void *allocated) {
    if (!allocated) die("memory");
    return allocated;
}

static long now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void add_time(Times *times, long value) {
    if (times->count == times->capacity) {
        times->capacity = times->capacity ? 2 * times->capacity : 65536;
        times->values = must(realloc(times->values, times->capacity * sizeof *times->values));
    }
    times->values[times->count++] = value;
}

// --- requests ---

static void make_request(const char *path, const char *headers, const char *body) {
    Request *request = &requests[request_count++];
    int length = asprintf(&request->text,
                          "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                          "Content-Length: %zu\r\n%s\r\n%s",
                          path, port, strlen(body), headers, body);
    if (length < 0) die("memory");
    request->length = length;
    for (char *at = request->text; (at = strstr(at, MARK)) && request->mark_count < MAX_MARKS; at += MARK_LENGTH)
        request->marks[request->mark_count++] = at - request->text;
}

static void make_requests(const char *file_name, const char *path, const char *headers) {
    FILE *file = file_name ? fopen(file_name, "r") : NULL;
    if (!file) die(file_name ? file_name : "-b is missing");
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    while ((length = getline(&line, &capacity, file)) > 0 && request_count < MAX_REQUESTS) {
        if (line[length - 1] == '\n') line[length - 1] = 0;
        if (*line) make_request(path, headers, line);
    }
    free(line);
    fclose(file);
    if (!request_count) {
        fprintf(stderr, "%s: no request body in it\n", file_name);
        exit(1);
    }
}

static int open_connection(Connection *connection) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) die("socket");
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        close(fd);
        return 0;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event interest = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &interest)) die("epoll_ctl");
    connection->fd = fd;
    return 1;
}

static void close_connection(Connection *connection) {
    if (connection->fd >= 0) close(connection->fd);
    connection->fd = -1;
}

static void leave(Connection *connection) {
    close_connection(connection);
    connection->state = OVER;
    running--;
}

static void note_error(const char *what, const Connection *connection) {
    errors++;
    if (!*error_sample)
        snprintf(error_sample, sizeof error_sample, "%s, status %d: %.*s", what, connection->status,
                 (int)connection->sample_length, connection->sample);
}

static void begin(Connection *connection) {
    if (wanted_requests ? issued >= wanted_requests : now_ns() >= end_at) {
        leave(connection);
        return;
    }
    Request *request = &requests[issued++ % request_count];
    connection->status = connection->failed = connection->closes = connection->line_ended = 0;
    connection->head_length = connection->sample_length = 0;
    connection->first_at = connection->event_at = 0;
    for (int mark = 0; mark < request->mark_count; mark++) {
        char digits[MARK_LENGTH + 1];
        snprintf(digits, sizeof digits, "%016lx", issued);
        memcpy(request->text + request->marks[mark], digits, MARK_LENGTH);
    }
    if (connection->fd < 0 && !open_connection(connection)) {
        note_error("no connection", connection);
        leave(connection);
        return;
    }
    connection->state = HEAD;
    connection->sent_at = now_ns();
    if (send(connection->fd, request->text, request->length, MSG_NOSIGNAL) != (ssize_t)request->length) {
        note_error("the request could not be sent", connection);
        leave(connection);
    }
}

static void finish(Connection *connection, int whole) {
    if (whole && connection->status == 200 && !connection->failed) {
        long now = now_ns();
        done++;
        add_time(&latency, now - connection->sent_at);
        if (connection->first_at) add_time(&first, connection->first_at - connection->sent_at);
    } else {
        note_error(whole ? "an error" : "a broken answer", connection);
    }
    connection->state = IDLE;
    if (!whole || connection->closes) {
        close_connection(connection);
        reconnects++;
    }
    begin(connection);
}

// --- answers ---

static int count_events(Connection *connection, const char *bytes, size_t length) {
    int count = 0;
    const char *at = bytes, *end = bytes + length;
    while (at < end) {
        if (connection->line_ended && *at == '\n') {
            count++;
            connection->line_ended = 0;
            at++;
            continue;
        }
        const char *line_break = memchr(at, '\n', end - at);
        connection->line_ended = line_break != NULL;
        if (!line_break) break;
        at = line_break + 1;
    }
    return count;
}

static void add_delays(const char *bytes, size_t length, long now) {
    const char *at = bytes, *end = bytes + length;
    while ((at = memmem(at, end - at, STAMP, sizeof STAMP - 1))) {
        at += sizeof STAMP - 1;
        if (end - at < STAMP_DIGITS) return;
        long stamp = 0;
        for (int digit = 0; digit < STAMP_DIGITS; digit++) stamp = stamp * 10 + (at[digit] - '0');
        add_time(&delay, now - stamp);
    }
}

static void take_body(Connection *connection, const char *bytes, size_t length) {
    if (!length) return;
    if (!connection->first_at) connection->first_at = now_ns();
    int is_error = connection->status != 200;
    int count = count_events(connection, bytes, length);
    if (count && !is_error) {
        long now = now_ns();
        if (connection->event_at) add_time(&gap, now - connection->event_at);
        connection->event_at = now;
        events += count;
        add_delays(bytes, length, now);
        if (memmem(bytes, length, "\"error\"", 7)) is_error = connection->failed = 1;
    }
    if (is_error && connection->sample_length < MAX_SAMPLE) {
        size_t room = MAX_SAMPLE - connection->sample_length, taken = length < room ? length : room;
        memcpy(connection->sample + connection->sample_length, bytes, taken);
        connection->sample_length += taken;
    }
}

// The bytes of `bytes` that belong to the head; 0 when it has become too large.
static size_t take_head(Connection *connection, const char *bytes, size_t length) {
    size_t before = connection->head_length, room = MAX_HEAD - 1 - before, taken = length < room ? length : room;
    memcpy(connection->head + before, bytes, taken);
    connection->head_length += taken;
    connection->head[connection->head_length] = 0;
    char *end = strstr(connection->head + (before < 3 ? 0 : before - 3), "\r\n\r\n");
    if (!end) return room > length ? taken : 0;
    *end = 0;
    const char *head = connection->head, *size = strcasestr(head, "\r\ncontent-length:");
    connection->status = connection->head_length > 9 ? atoi(head + 9) : 0;
    connection->closes = strcasestr(head, "\r\nconnection: close") != NULL;
    if (strcasestr(head, "\r\ntransfer-encoding: chunked")) {
        connection->state = CHUNK_SIZE;
        connection->remaining = 0;
    } else if (size) {
        connection->state = SIZED_BODY;
        connection->remaining = atol(size + strlen("\r\ncontent-length:"));
    } else {
        connection->state = BODY_UNTIL_CLOSE;
        connection->closes = 1;
    }
    return end + 4 - head - before;
}

static int hex_value(char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    digit |= 0x20;
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

static void take(Connection *connection, const char *bytes, size_t length) {
    while (length && connection->state != IDLE && connection->state != OVER) {
        size_t used = 1;
        switch (connection->state) {
        case HEAD:
            used = take_head(connection, bytes, length);
            if (!used) {
                finish(connection, 0);
                return;
            }
            if (connection->state == SIZED_BODY && !connection->remaining) {
                finish(connection, 1);
                return;
            }
            break;
        case SIZED_BODY:
        case CHUNK_DATA:
            used = length < (size_t)connection->remaining ? length : (size_t)connection->remaining;
            take_body(connection, bytes, used);
            connection->remaining -= used;
            if (!connection->remaining && connection->state == SIZED_BODY) {
                finish(connection, 1);
                return;
            }
            if (!connection->remaining) connection->state = CHUNK_END;
            break;
        case CHUNK_SIZE:
            if (*bytes == '\n')
                connection->state = connection->remaining ? CHUNK_DATA : TRAILER;
            else if (hex_value(*bytes) >= 0)
                connection->remaining = connection->remaining * 16 + hex_value(*bytes);
            break;
        case CHUNK_END:
            if (*bytes == '\n') {
                connection->state = CHUNK_SIZE;
                connection->remaining = 0;
            }
            break;
        case TRAILER:
            if (*bytes == '\n' && !connection->remaining) {
                finish(connection, 1);
                return;
            }
            connection->remaining = *bytes == '\n' ? 0 : connection->remaining + (*bytes != '\r');
            break;
        default:
            used = length;
            take_body(connection, bytes, used);
        }
        bytes += used;
        length -= used;
    }
}

static void read_answer(Connection *connection) {
    static char buffer[256 * 1024];
    ssize_t length = recv(connection->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (length > 0)
        take(connection, buffer, length);
    else if (length == 0 || errno != EAGAIN)
        finish(connection, connection->state == BODY_UNTIL_CLOSE);
}

static void drive(Connection *connections, long begin_at, long ramp_ns, long give_up_at) {
    struct epoll_event ready[MAX_EVENTS];
    int begun = 0;
    while (running > 0 && now_ns() < give_up_at) {
        int wait_ms = 200;
        while (begun < connection_count) {
            long due = begin_at + ramp_ns * begun / connection_count, now = now_ns();
            if (due > now) {
                wait_ms = (due - now) / 1000000 < wait_ms ? (due - now) / 1000000 : wait_ms;
                break;
            }
            begin(&connections[begun++]);
        }
        int count = epoll_wait(epoll_fd, ready, MAX_EVENTS, wait_ms);
        for (int at = 0; at < count; at++) {
            Connection *connection = ready[at].data.ptr;
            if (connection->fd >= 0) read_answer(connection);
        }
    }
}

// --- the result ---

static int compare_longs(const void *left, const void *right) {
    long a = *(const long *)left, b = *(const long *)right;
    return (a > b) - (a < b);
}

static double quantile_us(const Times *times, double share) {
    return times->count ? times->values[(size_t)(share * (times->count - 1) + 0.5)] / 1e3 : 0;
}

static void print_times(const char *name, Times *times) {
    if (times->count) qsort(times->values, times->count, sizeof *times->values, compare_longs);
    printf(", \"%s_us\": {\"count\": %zu, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}", name,
           times->count, quantile_us(times, 0.5), quantile_us(times, 0.9), quantile_us(times, 0.99),
           quantile_us(times, 1));
}

static void print_result(double seconds) {
    for (char *at = error_sample; *at; at++)
        if (*at == '"' || *at == '\\' || (unsigned char)*at < 32 || (unsigned char)*at > 126) *at = '\'';
    printf("{\"requests\": %ld, \"events\": %ld, \"errors\": %ld, \"unfinished\": %ld, \"reconnects\": %ld, "
           "\"seconds\": %.4f, \"error_sample\": \"%s\"",
           done, events, errors, running, reconnects, seconds, error_sample);
    print_times("latency", &latency);
    print_times("first", &first);
    print_times("gap", &gap);
    print_times("delay", &delay);
    printf("}\n");
}

int main(int argc, char **argv) {
    const char *file_name = NULL, *path = "/v1/chat/completions";
    char headers[4096] = "";
    long ramp_ms = 0;
    double seconds = 0;
    for (int option; (option = getopt(argc, argv, "p:b:c:n:d:H:u:r:t:")) > 0;) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'b': file_name = optarg; break;
        case 'c': connection_count = atoi(optarg); break;
        case 'n': wanted_requests = atol(optarg); break;
        case 'd': seconds = atof(optarg); break;
        case 'u': path = optarg; break;
        case 'r': ramp_ms = atol(optarg); break;
        case 't': timeout_s = atoi(optarg); break;
        case 'H':
            if (strlen(headers) + strlen(optarg) + 3 > sizeof headers) return fprintf(stderr, "too many headers\n"), 1;
            strcat(strcat(headers, optarg), "\r\n");
            break;
        default: return 1;
        }
    signal(SIGPIPE, SIG_IGN);
    make_requests(file_name, path, headers);
    epoll_fd = epoll_create1(0);
    Connection *connections = must(calloc(connection_count, sizeof *connections));
    for (int at = 0; at < connection_count; at++) connections[at].fd = -1;
    running = connection_count;
    long begin_at = now_ns();
    end_at = begin_at + (long)(seconds * 1e9);
    drive(connections, begin_at, ramp_ms * 1000000L, end_at + timeout_s * 1000000000L);
    print_result((now_ns() - begin_at) / 1e9);
    return 0;
}
