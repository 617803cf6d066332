package main

import (
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/podo-dev/podo/pkg/config"
)

// usageError is something asked for that cannot be: exit code 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }
func (e usageError) ExitCode() int { return 2 }

// usagef makes a usageError.
func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// flagProblem rewords what the flag parser says about a command line, with the
// flag that was probably meant. It is an OnUsageError.
func flagProblem(c *cli.Context, err error, _ bool) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		name = strings.TrimPrefix(name, "-")
		if why := config.Foreign(name); why != "" && takesSettings(c) {
			return usagef("unknown flag %s: %s; remove it", dashed(name), why)
		}
		if near := config.Nearest(name); near != "" && slices.Contains(flagNames(c), near) {
			return usagef("unknown flag %s; did you mean %s?", dashed(name), dashed(near))
		}
		if near := config.Closest(name, flagNames(c)); near != "" {
			return usagef("unknown flag %s; did you mean %s?", dashed(name), dashed(near))
		}
		return usagef("unknown flag %s; see %s --help", dashed(name), c.Command.HelpName)
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
		return usagef("%s: needs a value", dashed(strings.TrimPrefix(name, "-")))
	}
	if value, flag, ok := notParsed(text); ok {
		if slices.ContainsFunc(c.Command.Flags, func(f cli.Flag) bool { _, ok := f.(*cli.IntFlag); return ok && slices.Contains(f.Names(), flag) }) {
			return usagef("%s: %q is no number", dashed(flag), value)
		}
		return usagef("%s: %q is no time; write one such as 90s, 30m or 24h", dashed(flag), value)
	}
	return usageError{err}
}

// flagsFirst moves the flags of a command line before its arguments, where the library
// wants them: people write them in any order. What follows -- stays, and so does the
// command line of another program.
func flagsFirst(commands []*cli.Command, line []string) []string {
	var (
		cmd  *cli.Command
		head []string
	)
	for len(line) > 0 {
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(line[0]) })
		if i < 0 {
			break
		}
		cmd, commands = commands[i], commands[i].Subcommands
		head, line = append(head, line[0]), line[1:]
	}
	if cmd == nil || len(commands) > 0 || cmd.SkipFlagParsing || takesProgram(cmd) {
		return append(head, line...)
	}
	var flags, args []string
	for len(line) > 0 && line[0] != "--" {
		word := line[0]
		line = line[1:]
		if !strings.HasPrefix(word, "-") || word == "-" {
			args = append(args, word)
			continue
		}
		flags = append(flags, word)
		switch {
		case !hasValue(cmd, word):
		case len(line) == 0:
			return append(head, flags...) // no argument is to be taken for its value
		default:
			flags, line = append(flags, line[0]), line[1:]
		}
	}
	if len(line) > 0 {
		flags, line = append(flags, "--"), line[1:]
	}
	return slices.Concat(head, flags, args, line)
}

// programArgs ends the usage of a command that runs a program.
const programArgs = "PROGRAM [ARGUMENTS...]"

func takesProgram(c *cli.Command) bool { return strings.HasSuffix(c.ArgsUsage, programArgs) }

// hasValue reports whether the word after a flag is its value.
func hasValue(c *cli.Command, word string) bool {
	name := strings.TrimLeft(word, "-")
	for _, f := range c.Flags {
		names := f.Names()
		if s, ok := f.(*settingFlag); ok {
			names = append(names, s.field.Aliases...)
		}
		if d, ok := f.(cli.DocGenerationFlag); ok && slices.Contains(names, name) {
			return d.TakesValue()
		}
	}
	return false
}

// notParsed takes apart what is said of a flag's value that is no duration, or no number.
func notParsed(text string) (value, flag string, ok bool) {
	if !strings.HasSuffix(text, ": parse error") {
		return "", "", false
	}
	_, err := fmt.Sscanf(text, "invalid value %q for flag -%s", &value, &flag)
	return value, strings.TrimSuffix(flag, ":"), err == nil
}

// takesSettings reports whether a command has the flags of podo server.
func takesSettings(c *cli.Context) bool {
	return slices.ContainsFunc(c.Command.Flags, func(f cli.Flag) bool {
		_, ok := f.(*settingFlag)
		return ok
	})
}

func flagNames(c *cli.Context) (out []string) {
	for _, f := range c.Command.Flags {
		out = append(out, f.Names()...)
	}
	return out
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// settingFlags turns every field of cfg into a flag. What the user types is
// collected in typed, in order, and applied by config.Apply after everything else.
func settingFlags(cfg any, typed *[]config.Setting) []cli.Flag {
	var out []cli.Flag
	for _, f := range config.Fields(cfg) {
		out = append(out, &settingFlag{field: f, typed: typed})
	}
	return out
}

// settingFlag is a cli.Flag that remembers what was typed instead of parsing it.
type settingFlag struct {
	field config.Field
	typed *[]config.Setting
}

// Names leaves the aliases out: the library would set a flag once more under each
// of them.
func (s *settingFlag) Names() []string { return []string{s.field.Name} }

func (s *settingFlag) Apply(set *flag.FlagSet) error {
	for _, name := range append([]string{s.field.Name}, s.field.Aliases...) {
		set.Var(&typedValue{flag: s, as: dashed(name)}, name, s.field.Help)
	}
	return nil
}

func (s *settingFlag) IsSet() bool {
	for _, t := range *s.typed {
		if strings.TrimSuffix(t.Name, "+") == s.field.Name {
			return true
		}
	}
	return false
}

func (s *settingFlag) String() string         { return cli.FlagStringer(s) }
func (s *settingFlag) IsVisible() bool        { return !s.field.Hidden }
func (s *settingFlag) TakesValue() bool       { return !s.field.IsBool() }
func (s *settingFlag) GetUsage() string       { return s.field.Help }
func (s *settingFlag) GetValue() string       { return s.field.String() }
func (s *settingFlag) GetDefaultText() string { return defaultText(s.field) }
func (s *settingFlag) GetEnvVars() []string   { return s.field.Envs() }
func (s *settingFlag) GetCategory() string    { return s.field.Section }

// typedValue records one spelling of a flag.
type typedValue struct {
	flag *settingFlag
	as   string
}

func (v *typedValue) String() string   { return "" }
func (v *typedValue) IsBoolFlag() bool { return v.flag != nil && v.flag.field.IsBool() }

// Set adds to a list that was begun on the same command line; a single value is
// replaced, as shells have taught people to expect.
func (v *typedValue) Set(text string) error {
	f := v.flag.field
	name := f.Name
	if f.IsList() && v.flag.IsSet() {
		name += "+"
	}
	*v.flag.typed = append(*v.flag.typed, config.Setting{Name: name, Values: []string{text}, Origin: v.as})
	return nil
}

// defaultText is the default as help shows it: nothing for switches that are off,
// empty values, and those whose help already says it.
func defaultText(f config.Field) string {
	text := f.String()
	if text == "false" || text == "0" || strings.Contains(f.Help, "(default: ") {
		return ""
	}
	return text
}

// settingsHelp is the help template of a verb that takes settings: the usual head,
// the verb's own flags, then the settings below headings in reading order.
func settingsHelp(flags []cli.Flag) string {
	var b strings.Builder
	b.WriteString("{{.HelpName}} - {{.Usage}}\n\nUsage:\n  {{if .UsageText}}{{.UsageText}}{{else}}{{.HelpName}} [flags]{{end}}\n")
	b.WriteString("{{if .Description}}\n{{.Description}}\n{{end}}")
	var fields []config.Field
	var own strings.Builder
	for _, f := range flags {
		switch f := f.(type) {
		case *settingFlag:
			if !f.field.Hidden { // by now: verbs hide what does not matter to them
				fields = append(fields, f.field)
			}
		case cli.DocGenerationFlag:
			placeholder, help := "", f.GetUsage()
			if f.TakesValue() {
				placeholder = strings.ToUpper(f.Names()[0])
			}
			writeFlag(&own, f.Names(), placeholder, help)
		}
	}
	if own.Len() > 0 {
		b.WriteString("\nFlags:\n" + own.String())
	}
	for _, s := range config.Sections(fields) {
		fmt.Fprintf(&b, "\n%s:\n", s.Title)
		for _, f := range s.Fields {
			help := f.Help
			if d := defaultText(f); d != "" {
				help += " (default: " + d + ")"
			}
			if f.Deprecated != "" {
				help += " (deprecated: " + f.Deprecated + ")"
			}
			writeFlag(&b, append([]string{f.Name}, f.Aliases...), f.Placeholder, help)
		}
	}
	b.WriteString("\nEach setting is also a key of the configuration file (cluster-cidr: 10.1.0.0/16) and an\n" +
		"environment variable (PODO_CLUSTER_CIDR). Flags are stronger than the environment,\n" +
		"and that is stronger than files. Flags for lists may be given more than once.\n")
	return b.String()
}

func writeFlag(b *strings.Builder, names []string, placeholder, help string) {
	const column, width = 36, 96
	left := "      "
	for _, n := range names[1:] {
		if len(n) == 1 {
			left = "  -" + n + ", "
		}
	}
	if len(names[0]) == 1 {
		left = "  "
	}
	left += dashed(names[0])
	if placeholder != "" {
		left += " " + placeholder
	}
	line := left
	if len(left)+2 > column {
		b.WriteString(literal(left) + "\n")
		line = ""
	}
	line += strings.Repeat(" ", column-len(line))
	for word := range strings.FieldsSeq(help) {
		if len(line) > column && len(line)+1+len(word) > width {
			b.WriteString(literal(line) + "\n")
			line = strings.Repeat(" ", column)
		}
		if len(line) > column {
			line += " "
		}
		line += word
	}
	b.WriteString(literal(line) + "\n")
}

// literal quotes text for a text/template.
func literal(text string) string { return strings.ReplaceAll(text, "{{", `{{"{{"}}`) }
