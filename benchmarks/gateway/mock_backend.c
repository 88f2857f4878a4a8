// An OpenAI-compatible server at 127.0.0.1 that answers at once and always the same, for a gateway to stand before.
//
//   mock_backend PORT
//
// POST /v1/chat/completions, /v1/completions      one answer of 32 words; with "stream": true as chunks, see below
// GET  /v1/models                                 the model `mock`
// GET  /control?chunks=200&pace_us=0&stamp=0      how streams go from now on; says how many are under way
// anything else                                   200 and a small object, for whoever asks for health
//
// A stream has so many chunks and then [DONE], each in a write of its own: as fast as they are taken, or one every
// `pace_us` microseconds from the request on. With `stamp` their text is the time at which they were written.
// One thread and epoll (Linux 5.11, glibc 2.35 or later).
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

enum { MAX_FDS = 65536, MAX_EVENTS = 512, READ_ROOM = 4096, STAMP_DIGITS = 19, ROUNDS_A_TURN = 4 };

typedef struct {
    char *bytes;
    size_t start, length, capacity;
} Buffer;

typedef struct Connection {
    int fd;
    Buffer in, out;  // `out` holds what the socket did not take
    int streaming, queued, closes, waits_to_write;
    int chunks_sent, chunk_count;
    long due_at;
    struct Connection *next;
} Connection;

typedef struct {
    char bytes[4096];
    size_t length;
} Text;

static Connection *connections[MAX_FDS];
static Connection *first_stream, *last_stream;  // with pacing, the next that is due is the first
static long stream_count;
static int epoll_fd, chunk_count = 200, stamps;
static long pace_ns;
static Text answer, models, chunks[2], last_chunk, stamped_chunk;
static char *stamp_at;

static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                                  "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
static const char STREAM_END[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

static void *must(void *allocated) {
    if (!allocated) {
        perror("memory");
        exit(1);
    }
    return allocated;
}

static long now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void make_room(Buffer *buffer, size_t room) {
    if (buffer->start + buffer->length + room <= buffer->capacity) return;
    if (buffer->length) memmove(buffer->bytes, buffer->bytes + buffer->start, buffer->length);
    buffer->start = 0;
    if (buffer->length + room > buffer->capacity) {
        buffer->capacity = 2 * (buffer->length + room);
        buffer->bytes = must(realloc(buffer->bytes, buffer->capacity));
    }
}

// --- what is answered ---

static void set_json(Text *text, const char *json) {
    text->length = snprintf(text->bytes, sizeof text->bytes,
                            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                            strlen(json), json);
}

static void set_chunk(Text *text, const char *content, const char *finish_reason) {
    char event[1024];
    int length = snprintf(event, sizeof event,
                          "data: {\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\","
                          "\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"mock\",\"choices\":"
                          "[{\"index\":0,\"delta\":{\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":%s}]}\n\n",
                          content, finish_reason);
    text->length = snprintf(text->bytes, sizeof text->bytes, "%x\r\n%s\r\n", length, event);
}

static void make_answers(void) {
    char words[256] = "", json[2048];
    for (int word = 0; word < 32; word++) strcat(words, " word");
    snprintf(json, sizeof json,
             "{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion\","
             "\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
             "\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
             "\"usage\":{\"prompt_tokens\":16,\"total_tokens\":48,\"completion_tokens\":32}}",
             words);
    set_json(&answer, json);
    set_json(&models, "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1700000000,"
                      "\"owned_by\":\"mock\",\"max_model_len\":4096}]}");
    set_chunk(&chunks[0], " word", "null");
    set_chunk(&chunks[1], " next", "null");  // LiteLLM takes many chunks that are alike for a fault
    set_chunk(&last_chunk, " word", "\"stop\"");
    set_chunk(&stamped_chunk, "at:0000000000000000000", "null");
    stamp_at = strstr(stamped_chunk.bytes, "at:") + strlen("at:");
}

// --- connections ---

static void watch(Connection *connection, int operation, int fd) {
    struct epoll_event interest = {.data.fd = fd};
    interest.events = EPOLLIN | (connection && connection->waits_to_write ? EPOLLOUT : 0);
    epoll_ctl(epoll_fd, operation, fd, &interest);
}

static void release(Connection *connection) {
    free(connection->in.bytes);
    free(connection->out.bytes);
    free(connection);
}

static void close_connection(Connection *connection) {
    if (connection->fd < 0) return;
    connections[connection->fd] = NULL;
    close(connection->fd);
    connection->fd = -1;
    if (!connection->queued) release(connection);  // else whoever takes it from the queue does
}

// Zero when the connection is dead.
static int write_bytes(Connection *connection, const char *bytes, size_t length) {
    if (!connection->out.length) {
        ssize_t sent = send(connection->fd, bytes, length, MSG_NOSIGNAL);
        if (sent == (ssize_t)length) return 1;
        if (sent < 0 && errno != EAGAIN) return 0;
        if (sent > 0) bytes += sent, length -= sent;
    }
    make_room(&connection->out, length);
    memcpy(connection->out.bytes + connection->out.start + connection->out.length, bytes, length);
    connection->out.length += length;
    if (!connection->waits_to_write) {
        connection->waits_to_write = 1;
        watch(connection, EPOLL_CTL_MOD, connection->fd);
    }
    return 1;
}

static int write_text(Connection *connection, const Text *text) {
    return write_bytes(connection, text->bytes, text->length);
}

static void queue_stream(Connection *connection) {
    connection->next = NULL;
    connection->queued = 1;
    if (last_stream)
        last_stream->next = connection;
    else
        first_stream = connection;
    last_stream = connection;
    stream_count++;
}

static Connection *next_stream(void) {
    Connection *connection = first_stream;
    first_stream = connection->next;
    if (!first_stream) last_stream = NULL;
    connection->queued = 0;
    stream_count--;
    return connection;
}

// Write the next chunk, and [DONE] after the last: zero when the connection is dead.
static int write_chunk(Connection *connection) {
    int is_last = ++connection->chunks_sent >= connection->chunk_count;
    const Text *text = is_last ? &last_chunk : &chunks[connection->chunks_sent % 2];
    if (stamps) {
        char digits[STAMP_DIGITS + 1];
        snprintf(digits, sizeof digits, "%019ld", now_ns());
        memcpy(stamp_at, digits, STAMP_DIGITS);
        text = &stamped_chunk;
    }
    if (!write_text(connection, text)) return 0;
    if (is_last) connection->streaming = 0;
    return !is_last || write_bytes(connection, STREAM_END, sizeof STREAM_END - 1);
}

static int begin_stream(Connection *connection) {
    connection->streaming = 1;
    connection->chunks_sent = 0;
    connection->chunk_count = chunk_count;
    connection->due_at = now_ns();
    if (!write_bytes(connection, STREAM_HEAD, sizeof STREAM_HEAD - 1)) return 0;
    if (pace_ns) {
        if (!write_chunk(connection)) return 0;
        connection->due_at += pace_ns;
    }
    if (connection->streaming) queue_stream(connection);
    return 1;
}

// --- requests ---

static int asks_for_stream(const char *body, size_t length) {
    const char *at = body, *end = body + length;
    while ((at = memmem(at, end - at, "\"stream\"", 8))) {
        at += 8;
        while (at < end && (*at == ' ' || *at == ':')) at++;
        if (end - at >= 4 && !memcmp(at, "true", 4)) return 1;
    }
    return 0;
}

static int control(Connection *connection, const char *path) {
    const char *at;
    char json[128];
    Text text;
    if ((at = strstr(path, "chunks="))) chunk_count = atoi(at + 7);
    if ((at = strstr(path, "pace_us="))) pace_ns = atol(at + 8) * 1000;
    if ((at = strstr(path, "stamp="))) stamps = atoi(at + 6);
    snprintf(json, sizeof json, "{\"streams\":%ld}", stream_count);
    set_json(&text, json);
    return write_text(connection, &text);
}

static int serve(Connection *connection, const char *head, const char *body, size_t body_length) {
    const char *path = strchr(head, ' ');
    path = path ? path + 1 : head;
    if (!strncmp(path, "/v1/chat/completions", 20) || !strncmp(path, "/v1/completions", 15))
        return asks_for_stream(body, body_length) ? begin_stream(connection) : write_text(connection, &answer);
    if (!strncmp(path, "/v1/models", 10)) return write_text(connection, &models);
    if (!strncmp(path, "/control", 8)) return control(connection, path);
    Text healthy;
    set_json(&healthy, "{\"status\":\"ok\",\"model_path\":\"mock\",\"model_id\":\"mock\",\"is_generation\":true}");
    return write_text(connection, &healthy);
}

// Answer what has come whole: zero when the connection is dead.
static int serve_all(Connection *connection) {
    Buffer *in = &connection->in;
    while (!connection->streaming && in->length) {
        char *head = in->bytes + in->start, *end = memmem(head, in->length, "\r\n\r\n", 4);
        if (!end) return 1;
        *end = 0;
        size_t head_length = end + 4 - head, body_length = 0;
        const char *size = strcasestr(head, "\r\ncontent-length:");
        int chunked = strcasestr(head, "\r\ntransfer-encoding: chunked") != NULL;
        connection->closes = strcasestr(head, "\r\nconnection: close") != NULL;
        if (size) body_length = strtoul(size + strlen("\r\ncontent-length:"), NULL, 10);
        if (chunked) {
            char *last = memmem(end + 2, in->length - head_length + 2, "\r\n0\r\n\r\n", 7);
            body_length = last ? (size_t)(last + 7 - end - 4) : in->length;
        }
        if (in->length < head_length + body_length) {
            *end = '\r';
            return 1;
        }
        if (!serve(connection, head, end + 4, body_length)) return 0;
        in->start += head_length + body_length;
        in->length -= head_length + body_length;
        if (!connection->streaming && connection->closes && !connection->out.length) return 0;
    }
    if (!in->length) in->start = 0;
    return 1;
}

static int read_requests(Connection *connection) {
    Buffer *in = &connection->in;
    make_room(in, READ_ROOM);
    char *room = in->bytes + in->start + in->length;
    ssize_t length = recv(connection->fd, room, in->bytes + in->capacity - room, 0);
    if (length <= 0) return length < 0 && errno == EAGAIN;
    in->length += length;
    return serve_all(connection);
}

static int write_rest(Connection *connection) {
    Buffer *out = &connection->out;
    ssize_t sent = send(connection->fd, out->bytes + out->start, out->length, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN;
    out->start += sent;
    out->length -= sent;
    if (out->length) return 1;
    out->start = 0;
    connection->waits_to_write = 0;
    watch(connection, EPOLL_CTL_MOD, connection->fd);
    if (!connection->streaming) return connection->closes ? 0 : serve_all(connection);
    if (!connection->queued) queue_stream(connection);
    return 1;
}

static void accept_all(int listener) {
    int one = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Connection *connection = must(calloc(1, sizeof *connection));
        connection->fd = fd;
        connections[fd] = connection;
        watch(connection, EPOLL_CTL_ADD, fd);
    }
}

// --- the loop ---

// One chunk of each stream: with pacing, of those that are due.
static void write_round(void) {
    long now = now_ns();
    for (long left = stream_count; left > 0 && first_stream; left--) {
        if (pace_ns && first_stream->due_at > now) return;
        Connection *connection = next_stream();
        if (connection->fd < 0) {
            release(connection);
            continue;
        }
        if (connection->waits_to_write && !pace_ns) continue;  // write_rest queues it again
        int alive = write_chunk(connection);
        if (alive && !connection->streaming)
            alive = connection->closes ? connection->out.length > 0 : serve_all(connection);
        if (!alive) {
            close_connection(connection);
        } else if (connection->streaming && !connection->queued) {
            connection->due_at += pace_ns;
            queue_stream(connection);
        }
    }
}

static int wait_for_events(struct epoll_event *ready) {
    struct timespec timeout = {0};
    if (first_stream && pace_ns) {
        long wait_ns = first_stream->due_at - now_ns();
        if (wait_ns > 0) timeout = (struct timespec){wait_ns / 1000000000L, wait_ns % 1000000000L};
    }
    return epoll_pwait2(epoll_fd, ready, MAX_EVENTS, first_stream ? &timeout : NULL, NULL);
}

static int listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("mock_backend: the port cannot be had");
        exit(1);
    }
    return listener;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: mock_backend PORT\n");
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    make_answers();
    int listener = listen_on(atoi(argv[1]));
    epoll_fd = epoll_create1(0);
    watch(NULL, EPOLL_CTL_ADD, listener);
    for (struct epoll_event ready[MAX_EVENTS];;) {
        int count = wait_for_events(ready);
        for (int at = 0; at < count; at++) {
            int fd = ready[at].data.fd;
            if (fd == listener) {
                accept_all(listener);
                continue;
            }
            Connection *connection = connections[fd];
            int alive = connection != NULL;
            if (alive && ready[at].events & EPOLLOUT) alive = write_rest(connection);
            if (alive && ready[at].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) alive = read_requests(connection);
            if (connection && !alive) close_connection(connection);
        }
        for (int round = pace_ns ? 1 : ROUNDS_A_TURN; round > 0 && first_stream; round--) write_round();
    }
}
