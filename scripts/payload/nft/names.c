/*
 * libnames answers nft's questions about protocols from a table of its own: a host
 * may have no /etc/protocols, and its name service modules, which libc would load,
 * are built for another libc.
 */
#include <netdb.h>
#include <stddef.h>

static char *none[] = { NULL };

static struct protoent table[] = {
	{ "ip", none, 0 },        { "icmp", none, 1 },
	{ "igmp", none, 2 },      { "ipencap", none, 4 },
	{ "tcp", none, 6 },       { "egp", none, 8 },
	{ "udp", none, 17 },      { "dccp", none, 33 },
	{ "ipv6", none, 41 },     { "ipv6-route", none, 43 },
	{ "ipv6-frag", none, 44 }, { "gre", none, 47 },
	{ "esp", none, 50 },      { "ah", none, 51 },
	{ "ipv6-icmp", none, 58 }, { "ipv6-nonxt", none, 59 },
	{ "ipv6-opts", none, 60 }, { "ospf", none, 89 },
	{ "ipip", none, 94 },     { "pim", none, 103 },
	{ "comp", none, 108 },    { "vrrp", none, 112 },
	{ "l2tp", none, 115 },    { "sctp", none, 132 },
	{ "udplite", none, 136 }, { "mptcp", none, 262 },
};

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

struct protoent *getprotobyname(const char *name)
{
	/* nft's own spellings of two of them */
	if (same(name, "icmpv6"))
		name = "ipv6-icmp";
	if (same(name, "ipcomp"))
		name = "comp";
	for (size_t i = 0; i < sizeof table / sizeof *table; i++)
		if (same(table[i].p_name, name))
			return &table[i];
	return NULL;
}

struct protoent *getprotobynumber(int number)
{
	for (size_t i = 0; i < sizeof table / sizeof *table; i++)
		if (table[i].p_proto == number)
			return &table[i];
	return NULL;
}
