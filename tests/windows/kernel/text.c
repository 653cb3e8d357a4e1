/* Texts and memory, as the compiler and the orders need them. */
#include "guest.h"

void *memset(void *to, int value, size_t bytes)
{
    void *start = to;

    asm volatile ( "rep stosb" : "+D" (to), "+c" (bytes) : "a" (value) : "memory" );

    return start;
}

void *memcpy(void *to, const void *from, size_t bytes)
{
    void *start = to;

    asm volatile ( "rep movsb" : "+D" (to), "+S" (from), "+c" (bytes) :: "memory" );

    return start;
}

void text_add(struct text *text, const char *more)
{
    while ( *more && text->length < sizeof(text->bytes) - 1 )
        text->bytes[text->length++] = *more++;
    text->bytes[text->length] = 0;
}

void text_number(struct text *text, uint64_t number)
{
    char digits[21];
    unsigned int at = sizeof(digits) - 1;

    digits[at] = 0;
    do {
        digits[--at] = '0' + number % 10;
        number /= 10;
    } while ( number );
    text_add(text, &digits[at]);
}

/* What stands behind `"name":`. */
static const char *member(const char *line, const char *name)
{
    for ( ; *line; line++ )
    {
        const char *at = line + 1, *letter = name;

        if ( *line != '"' )
            continue;
        while ( *letter && *at == *letter )
            at++, letter++;
        if ( !*letter && at[0] == '"' && at[1] == ':' )
            return at + 2;
    }

    return NULL;
}

uint64_t json_number(const char *line, const char *name, uint64_t otherwise)
{
    const char *at = member(line, name);
    uint64_t number = 0;

    if ( !at || *at < '0' || *at > '9' )
        return otherwise;
    for ( ; *at >= '0' && *at <= '9'; at++ )
        number = number * 10 + (*at - '0');

    return number;
}

bool json_is(const char *line, const char *name, const char *value)
{
    const char *at = member(line, name);

    if ( !at || *at++ != '"' )
        return false;
    while ( *value && *at == *value )
        at++, value++;

    return !*value && *at == '"';
}

void stop(const char *why)
{
    console_write("\r\nlacuna windows guest: ");
    console_write(why);
    console_write("\r\n");
    xen_crash();
}
