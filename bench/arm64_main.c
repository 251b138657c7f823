/* Runs one function over tiles (qkernels/lanes/cpu_driver.py) on arrays read from a file: bench/arm64.py.
   The file: n_rows, n_cols, tiles, bytes of own memory, bytes of the result, number of tables; then source, columns,
   sigma and the tables, each behind its number of bytes; all numbers are int64. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TABLES = 8, ALIGNMENT = 64 };

extern const char drive[];
typedef int32_t (*function)(void *, void *, void *, void *, int64_t, int64_t, int64_t, int64_t, void *,
                            void *, void *, void *, void *, void *, void *, void *, void *);

static void *memory(int64_t size) {
    void *place = aligned_alloc(ALIGNMENT, (size / ALIGNMENT + 1) * ALIGNMENT);
    if (!place) exit(3);
    memset(place, 0xA5, size); /* what was there before must not show */
    return place;
}

static void *array(FILE *file) {
    int64_t size;
    if (fread(&size, sizeof size, 1, file) != 1) exit(4);
    void *place = memory(size);
    if (fread(place, 1, size, file) != (size_t)size) exit(4);
    return place;
}

int main(int count, char **names) {
    int64_t facts[6];
    FILE *file = count == 3 ? fopen(names[1], "rb") : NULL;
    if (!file || fread(facts, sizeof *facts, 6, file) != 6 || facts[5] > MOST_TABLES) return 2;
    void *source = array(file), *columns = array(file), *sigma = array(file), *tables[MOST_TABLES] = {0};
    for (int i = 0; i < facts[5]; i++) tables[i] = array(file);
    void *own = memory(facts[3]), *target = memory(facts[4]);
    int32_t unsound = ((function)(uintptr_t)drive)(source, columns, sigma, target, facts[0], facts[1], 0, facts[2], own,
                                        tables[0], tables[1], tables[2], tables[3], tables[4], tables[5],
                                        tables[6], tables[7]);
    FILE *result = fopen(names[2], "wb");
    if ((unsound & 1) || !result || fwrite(target, 1, facts[4], result) != (size_t)facts[4]) return 5;
    return fclose(result) ? 6 : 0;
}
