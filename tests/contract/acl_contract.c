/* ACL's virtual memory functions over memfds, with ACL's restrictions and none of its freedom.
 *
 * A handle is one memfd. It is mapped whole and at offset 0, exported once, freed only when it is
 * not mapped; an import needs the importer on the exporter's list; a reserved range holds pages of
 * one device, local or imported, never both. A shareable handle is exporter's pid << 32 | index.
 * The list of processes is a file beside the memfd's content, in a second memfd. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define OK 0
#define BAD_PARAM 107000
#define BAD_STATE 107017
#define NOT_ALLOWED 507899
#define OUT_OF_MEMORY 207001
#define REPEATED 100002
#define GRAIN 65536
#define MAX 4096
#define PIDS 64

typedef struct { uint32_t id; int type; } location_t;
typedef struct { int handle_type, allocation_type, attribute; location_t location; uint64_t reserve; } prop_t;
typedef struct { int flags; location_t location; uint8_t rsv[12]; } access_t;
typedef struct { int fd, list_fd, imported, exported, maps, device; size_t size; } handle_t;
typedef struct { char *start; size_t size; int units, device, imported; } range_t;
typedef struct { char *at; handle_t *handle; } unit_t;

static int initialized, current = -1;
static range_t ranges[MAX];
static unit_t units[MAX];
static size_t created_bytes;

static range_t *range_of(char *at, size_t size) {
    for (int i = 0; i < MAX; i++)
        if (ranges[i].start && ranges[i].start <= at && at + size <= ranges[i].start + ranges[i].size)
            return &ranges[i];
    return NULL;
}
static unit_t *unit_at(char *at) {
    for (int i = 0; i < MAX; i++)
        if (units[i].at == at) return &units[i];
    return NULL;
}

int aclInit(const char *config) {
    (void)config;
    if (initialized) return REPEATED;
    initialized = 1;
    return OK;
}
int aclrtSetDevice(int32_t device) {
    if (!initialized || device < 0) return BAD_STATE;
    current = device;
    return OK;
}
int aclrtDeviceGetBareTgid(int32_t *pid) { *pid = getpid(); return OK; }
int aclrtMemGetAllocationGranularity(prop_t *prop, int option, size_t *grain) {
    if (current < 0 || option != 0 || prop->location.type != 1) return BAD_PARAM;
    *grain = GRAIN;
    return OK;
}
int aclrtMallocPhysical(handle_t **out, size_t size, const prop_t *prop, uint64_t flags) {
    if (current < 0 || flags || prop->handle_type || prop->allocation_type || prop->attribute != 4 ||
        prop->location.type != 1 || size == 0 || size % GRAIN)
        return BAD_PARAM;
    const char *limit = getenv("ACL_CONTRACT_BYTES");
    if (limit && created_bytes + size > strtoull(limit, NULL, 10)) return OUT_OF_MEMORY;
    handle_t *handle = calloc(1, sizeof *handle);
    handle->fd = memfd_create("acl-page", MFD_CLOEXEC);
    handle->list_fd = memfd_create("acl-list", MFD_CLOEXEC);
    if (handle->fd < 0 || handle->list_fd < 0 || ftruncate(handle->fd, size) ||
        ftruncate(handle->list_fd, PIDS * sizeof(int32_t)))
        return OUT_OF_MEMORY;
    handle->size = size;
    handle->device = prop->location.id;
    created_bytes += size;
    *out = handle;
    return OK;
}
int aclrtFreePhysical(handle_t *handle) {
    if (!handle || handle->fd < 0) return BAD_PARAM;
    if (handle->maps) return BAD_STATE;
    if (!handle->imported) created_bytes -= handle->size;
    close(handle->fd);
    if (handle->list_fd >= 0) close(handle->list_fd);
    handle->fd = -1;
    free(handle);
    return OK;
}
int aclrtReserveMemAddress(void **out, size_t size, size_t alignment, void *expected, uint64_t flags) {
    if (alignment || expected || flags || size == 0) return BAD_PARAM;
    size_t huge = 2 << 20;
    char *start = mmap(NULL, size + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return OUT_OF_MEMORY;
    char *aligned = (char *)(((uintptr_t)start + huge - 1) & ~(huge - 1));
    if (aligned > start) munmap(start, aligned - start);
    if (start + huge > aligned) munmap(aligned + size, start + huge - aligned);
    for (int i = 0; i < MAX; i++)
        if (!ranges[i].start) {
            ranges[i] = (range_t){aligned, size, 0, -1, 0};
            *out = aligned;
            return OK;
        }
    return OUT_OF_MEMORY;
}
int aclrtReleaseMemAddress(void *at) {
    for (int i = 0; i < MAX; i++)
        if (ranges[i].start == at) {
            if (ranges[i].units) return BAD_STATE;
            munmap(at, ranges[i].size);
            ranges[i].start = NULL;
            return OK;
        }
    return BAD_PARAM;
}
int aclrtMapMem(void *at, size_t size, size_t offset, handle_t *handle, uint64_t flags) {
    range_t *range = range_of(at, size);
    if (!range || offset || flags || !handle || handle->fd < 0 || size != handle->size) return BAD_PARAM;
    for (int i = 0; i < MAX; i++)
        if (units[i].at && units[i].at < (char *)at + size && (char *)at < units[i].at + units[i].handle->size)
            return BAD_STATE; /* mapped already */
    if (range->units && (range->device != handle->device || range->imported != handle->imported))
        return NOT_ALLOWED; /* a mixed window */
    unit_t *unit = unit_at(NULL);
    if (!unit) return OUT_OF_MEMORY;
    /* No access before it is set. */
    if (mmap(at, size, PROT_NONE, MAP_SHARED | MAP_FIXED, handle->fd, 0) == MAP_FAILED) return OUT_OF_MEMORY;
    *unit = (unit_t){at, handle};
    handle->maps++;
    range->units++;
    range->device = handle->device;
    range->imported = handle->imported;
    return OK;
}
int aclrtMemSetAccess(void *at, size_t size, access_t *access, size_t count) {
    if (count != 1 || (access->flags != 1 && access->flags != 3) || access->location.type != 1) return BAD_PARAM;
    size_t covered = 0;
    for (int i = 0; i < MAX; i++)
        if (units[i].at && units[i].at >= (char *)at && units[i].at < (char *)at + size)
            covered += units[i].handle->size;
    if (covered != size) return BAD_STATE;
    return mprotect(at, size, access->flags == 3 ? PROT_READ | PROT_WRITE : PROT_READ) ? BAD_PARAM : OK;
}
int aclrtUnmapMem(void *at) {
    unit_t *unit = at ? unit_at(at) : NULL;
    if (!unit) return BAD_PARAM;
    mmap(at, unit->handle->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    range_of(at, unit->handle->size)->units--;
    unit->handle->maps--;
    *unit = (unit_t){0};
    return OK;
}
int aclrtMemExportToShareableHandle(handle_t *handle, int type, uint64_t flags, uint64_t *out) {
    if (!handle || handle->fd < 0 || handle->imported || type || flags) return BAD_PARAM;
    if (handle->exported++) return NOT_ALLOWED; /* once per handle */
    *out = (uint64_t)getpid() << 32 | (uint64_t)handle->fd << 16 | (uint64_t)handle->list_fd;
    return OK;
}
int aclrtMemSetPidToShareableHandle(uint64_t shareable, int32_t *pid, size_t count) {
    if (count != 1 || (pid_t)(shareable >> 32) != getpid()) return BAD_PARAM;
    int32_t list[PIDS];
    if (pread(shareable & 0xffff, list, sizeof list, 0) != sizeof list) return BAD_PARAM;
    for (int i = 0; i < PIDS; i++)
        if (!list[i] || list[i] == *pid)
            return pwrite(shareable & 0xffff, pid, sizeof *pid, i * sizeof *pid) == sizeof *pid ? OK : BAD_PARAM;
    return OUT_OF_MEMORY;
}
int aclrtMemImportFromShareableHandle(uint64_t shareable, int32_t device, handle_t **out) {
    char path[64];
    int32_t list[PIDS] = {0};
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)(shareable >> 32), (int)(shareable & 0xffff));
    int list_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (list_fd < 0 || current < 0) return BAD_PARAM;
    ssize_t got = pread(list_fd, list, sizeof list, 0);
    close(list_fd);
    int allowed = 0;
    for (int i = 0; i < PIDS; i++) allowed |= list[i] == getpid();
    if (got != sizeof list || !allowed) return NOT_ALLOWED;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)(shareable >> 32), (int)(shareable >> 16 & 0xffff));
    handle_t *handle = calloc(1, sizeof *handle);
    handle->fd = open(path, O_RDWR | O_CLOEXEC);
    handle->list_fd = -1;
    handle->imported = 1;
    handle->device = device;
    if (handle->fd < 0) return BAD_PARAM;
    handle->size = lseek(handle->fd, 0, SEEK_END);
    *out = handle;
    return OK;
}
int aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t count, int kind, void *stream) {
    if (count > room || kind != 3 || stream) return BAD_PARAM;
    memcpy(to, from, count);
    return OK;
}
int aclrtSynchronizeStream(void *stream) { return stream ? BAD_PARAM : OK; }
