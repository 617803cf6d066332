package main

import (
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"
)

func completionCommand() *cli.Command {
	shell := func(name, usage string, write func(io.Writer, []verb)) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, OnUsageError: flagProblem,
			Action: func(c *cli.Context) error {
				if err := noArgs(c); err != nil {
					return err
				}
				write(c.App.Writer, verbs(rootApp(c)))
				return nil
			},
		}
	}
	return &cli.Command{
		Name:  "completion",
		Usage: "print a script that lets a shell complete podo's commands",
		Description: `Completes commands, flags and files, for root the clusters and nodes of podo cluster too,
and behind podo kubectl whatever kubectl knows: pods, namespaces, kinds.

Examples:
  source <(podo completion bash)                                   for this shell
  podo completion bash > /etc/bash_completion.d/podo               for all to come
  podo completion zsh > "${fpath[1]}/_podo"
  podo completion fish > ~/.config/fish/completions/podo.fish`,
		Subcommands: []*cli.Command{
			shell("bash", "for bash, 4.0 or newer", writeBash),
			shell("zsh", "for zsh", writeZsh),
			shell("fish", "for fish", writeFish),
		},
		Action:       chooseOne,
		OnUsageError: flagProblem,
	}
}

// rootApp is the whole command line, which a sub-command sees only a part of.
func rootApp(c *cli.Context) *cli.App {
	for _, up := range c.Lineage() {
		if up.App != nil {
			c = up
		}
	}
	return c.App
}

// A verb is a command as a shell needs to know it.
type verb struct {
	path  string // "podo kubeconfig merge"
	usage string
	subs  []verb
	flags []option
	args  option // what its arguments are like
	// applet commands complete their own arguments.
	applet string
}

type option struct {
	long, short []string
	usage       string
	value       bool // takes one
	file        bool // which is a file or a folder
	choices     []string
	lister      string
}

// listerOf is the command line of podo that lists what a word of another may be, a flag or
// an argument as help calls it. One that ends in = wants the name of the cluster there.
func listerOf(path, word string) string {
	switch {
	case !strings.HasPrefix(path, "podo cluster ") || path == "podo cluster create":
		return ""
	case word == "--name":
		return "cluster get clusters"
	case word == "--nodes" || strings.HasPrefix(word, "NODE"):
		return "cluster get nodes -o name --name="
	}
	return ""
}

// verbs lists every visible command of the app, itself first and parents before
// their children.
func verbs(app *cli.App) []verb {
	var out []verb
	var walk func(path, usage, args string, commands []*cli.Command, flags []cli.Flag, applet string, help bool) verb
	walk = func(path, usage, args string, commands []*cli.Command, flags []cli.Flag, applet string, help bool) verb {
		at := len(out)
		out = append(out, verb{})
		v := verb{path: path, usage: usage, applet: applet}
		v.args = option{file: strings.HasPrefix(args, "FILE"), lister: listerOf(path, args)}
		for _, f := range flags {
			if o, ok := describe(f); ok {
				o.lister = listerOf(path, o.spelled()[0])
				v.flags = append(v.flags, o)
			}
		}
		if help {
			v.flags = append(v.flags, option{long: []string{"help"}, short: []string{"h"}, usage: "explain the command"})
		}
		for _, c := range commands {
			if c.Hidden || c.Name == "help" {
				continue
			}
			applet := ""
			if c.SkipFlagParsing {
				applet = c.Name
			}
			v.subs = append(v.subs, walk(path+" "+c.Name, c.Usage, c.ArgsUsage, c.Subcommands, c.Flags, applet, !c.HideHelp))
		}
		out[at] = v
		return v
	}
	walk(app.Name, app.Usage, "", app.Commands, nil, "", true)
	return out
}

// describe reads a flag's nature off its interfaces, so that it serves cli's own flags
// and ours alike.
func describe(f cli.Flag) (option, bool) {
	if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() {
		return option{}, false
	}
	var o option
	for _, n := range f.Names() {
		switch {
		case n == "help" || n == "h":
			return option{}, false
		case len(n) == 1:
			o.short = append(o.short, n)
		default:
			o.long = append(o.long, n)
		}
	}
	placeholder := ""
	if d, ok := f.(cli.DocGenerationFlag); ok {
		o.value = d.TakesValue()
		o.usage = strings.ReplaceAll(d.GetUsage(), "`", "")
	}
	switch f := f.(type) {
	case *cli.GenericFlag:
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
			o.value = false
		}
	case *cli.StringFlag:
		o.file = f.TakesFile
	case *settingFlag:
		placeholder = f.field.Placeholder
		for _, a := range f.field.Aliases {
			if len(a) == 1 {
				o.short = append(o.short, a)
			}
		}
	}
	o.file = o.file || placeholder == "FILE" || placeholder == "DIR"
	// Help that ends in "... a, b or c" names the values there are.
	if list := regexp.MustCompile(`: ((?:[a-z0-9-]+, )*[a-z0-9-]+ or [a-z0-9-]+)$`).FindStringSubmatch(o.usage); list != nil && o.value {
		o.choices = strings.Split(strings.ReplaceAll(list[1], " or ", ", "), ", ")
	}
	return o, true
}

// spelled is the flag as it is typed, every way there is.
func (o option) spelled() []string {
	var out []string
	for _, n := range o.long {
		out = append(out, "--"+n)
	}
	for _, n := range o.short {
		out = append(out, "-"+n)
	}
	return out
}

// source is what a script is told of a word: FILE, or what lists it.
func (o option) source() string {
	if o.file {
		return "FILE"
	}
	return o.lister
}

// quote makes text one word of any shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

func names(vs []verb) []string {
	var out []string
	for _, v := range vs {
		out = append(out, v.path[strings.LastIndexByte(v.path, ' ')+1:])
	}
	return out
}

// spellings collects the flags that pick chooses, joined for a shell pattern or list.
func spellings(os []option, sep string, pick func(option) bool) string {
	var out []string
	for _, o := range os {
		if pick(o) {
			out = append(out, o.spelled()...)
		}
	}
	return strings.Join(out, sep)
}

func takesValue(o option) bool { return o.value }
func takesFile(o option) bool  { return o.file }
func isAny(option) bool        { return true }

// The bash script works on the line rather than on COMP_WORDS, which bash has cut at
// every = and : as well. What it offers for a word is then shortened accordingly.
const bashScript = `_podo() {
    local line=${COMP_LINE:0:COMP_POINT} cur='' prev='' i word
    local -a words
    read -ra words <<< "$line"
    if [[ $line == *[[:space:]] || ${#words[@]} -eq 0 ]]; then
        words+=('')
    fi
    cur=${words[${#words[@]}-1]}
    local path=podo applet='' commands='' flags='' valued='' filed='' args='' choices='' skip='' name='' given=''
    _podo_verb "$path"
    for ((i = 1; i < ${#words[@]} - 1; i++)); do
        word=${words[i]}
        if [[ $skip == --name ]]; then
            name=$word
        elif [[ $word == --name=* ]]; then
            name=${word#*=}
        fi
        if [[ -n $skip ]]; then
            skip=''
        elif [[ $word == -* ]]; then
            if [[ " $valued " == *" $word "* ]]; then
                skip=$word
            fi
        elif [[ " $commands " == *" $word "* ]]; then
            path+=" $word"
            _podo_verb "$path"
            if [[ -n $applet ]]; then
                _podo_applet "$applet" "${words[@]:i+1}"
                return
            fi
        else
            given=yes
        fi
    done
    prev=$skip
    local typed=$cur
    if [[ $cur == --*=* ]]; then
        prev=${cur%%=*}
        typed=${cur#*=}
    fi
    COMPREPLY=()
    if [[ -n $prev ]]; then
        _podo_choices "$path" "$prev"
        if [[ -n $choices ]]; then
            COMPREPLY=($(compgen -W "$choices" -- "$typed"))
        elif [[ " $filed " == *" $prev "* ]]; then
            _podo_files "$typed"
        fi
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    elif [[ $args == FILE ]]; then
        _podo_files "$cur"
    elif [[ -n $args && -z $given ]]; then
        COMPREPLY=($(compgen -W "$(_podo_list "$args")" -- "$cur"))
    else
        COMPREPLY=($(compgen -W "$commands" -- "$cur"))
        if [[ ${#COMPREPLY[@]} -eq 0 && -z $cur ]]; then
            COMPREPLY=($(compgen -W "$flags"))
        fi
    fi
}

_podo_files() {
    compopt -o filenames 2> /dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$1")
}

# _podo_list asks podo, about the cluster that was named if that matters.
_podo_list() {
    [[ $1 == *= ]] && set -- "$1$name"
    "${words[0]}" $1 2> /dev/null
}

# _podo_applet asks the program itself: kubectl as cobra does it, ctr as urfave/cli
# does it. Of crictl only its commands can be had.
_podo_applet() {
    local program=$1 cur=${words[${#words[@]}-1]} out directive=0 text cut
    shift
    COMPREPLY=()
    case $program in
    kubectl)
        out=$("${words[0]}" kubectl __complete "$@" 2> /dev/null) || return
        directive=${out##*:}
        out=${out%:*}
        ;;
    crictl)
        (($# == 1)) || return
        out=$("${words[0]}" crictl completion bash 2> /dev/null) || return
        out=${out#*opts=\"}
        out=${out%%\"*}
        ;;
    *)
        out=$("${words[0]}" "$program" "${@:1:$#-1}" --generate-bash-completion 2> /dev/null) || return
        ;;
    esac
    [[ $directive =~ ^[0-9]+$ ]] || directive=0
    cut=${cur%"${cur##*[=:]}"}
    while IFS= read -r text; do
        text=${text%%$'\t'*}
        if [[ $program != kubectl ]]; then
            text=${text%%:*}
        fi
        if [[ -n $text && $text == "$cur"* ]]; then
            COMPREPLY+=("${text#"$cut"}")
        fi
    done <<< "$out"
    if ((directive & 2)); then
        compopt -o nospace 2> /dev/null
    fi
    if ((${#COMPREPLY[@]} == 0 && !(directive & 5))); then
        _podo_files "${cur#"$cut"}"
    fi
}
`

func writeBash(w io.Writer, vs []verb) {
	fmt.Fprintln(w, "# bash completion for podo. Made by: podo completion bash")
	fmt.Fprintln(w, "\n# _podo_verb says what may follow a command.\n_podo_verb() {\n    applet='' commands='' flags='' valued='' filed='' args=''\n    case $1 in")
	for _, v := range vs {
		fmt.Fprintf(w, "    %s)\n", quote(v.path))
		for _, set := range [][2]string{
			{"applet", v.applet},
			{"commands", strings.Join(names(v.subs), " ")},
			{"flags", spellings(v.flags, " ", isAny)},
			{"valued", spellings(v.flags, " ", takesValue)},
			{"filed", spellings(v.flags, " ", takesFile)},
			{"args", v.args.source()},
		} {
			if set[1] != "" {
				fmt.Fprintf(w, "        %s=%s\n", set[0], quote(set[1]))
			}
		}
		fmt.Fprintln(w, "        ;;")
	}
	fmt.Fprintln(w, "    esac\n}\n\n# _podo_choices lists the values of a flag that has few.\n_podo_choices() {\n    choices=''\n    case \"$1 $2\" in")
	for _, v := range vs {
		for _, o := range v.flags {
			choices := quote(strings.Join(o.choices, " "))
			switch {
			case o.lister != "":
				choices = "$(_podo_list " + quote(o.lister) + ")"
			case len(o.choices) == 0:
				continue
			}
			var patterns []string
			for _, s := range o.spelled() {
				patterns = append(patterns, quote(v.path+" "+s))
			}
			fmt.Fprintf(w, "    %s) choices=%s ;;\n", strings.Join(patterns, "|"), choices)
		}
	}
	fmt.Fprintln(w, "    esac\n}")
	fmt.Fprintln(w)
	_, _ = io.WriteString(w, bashScript)
	fmt.Fprintln(w, "\ncomplete -F _podo podo")
}

const zshScript = `_podo() {
    local at=podo word cur=$words[CURRENT] i applet='' args='' skip='' name='' given='' out line directive
    local -a commands flags valued filed described
    _podo_verb $at
    for ((i = 2; i < CURRENT; i++)); do
        word=$words[i]
        if [[ $skip == --name ]]; then
            name=$word
        elif [[ $word == --name=* ]]; then
            name=${word#*=}
        fi
        if [[ -n $skip ]]; then
            skip=''
        elif [[ $word == -* ]]; then
            (( ${valued[(Ie)$word]} )) && skip=$word
        elif (( ${commands[(I)$word:*]} )); then
            at+=" $word"
            _podo_verb $at
            if [[ $applet == kubectl ]]; then
                out=$($words[1] kubectl __complete "${(@)words[i+1,CURRENT]}" 2> /dev/null) || return 1
                directive=${out##*:}
                for line in ${(f)${out%:*}}; do
                    [[ -n $line ]] && described+=("${${line%%$'\t'*}//:/\\:}:${${line#*$'\t'}//:/ }")
                done
                if (( ${#described} )); then
                    if (( directive & 2 )); then
                        _describe kubectl described -S ''
                    else
                        _describe kubectl described
                    fi
                elif (( ! (directive & 5) )); then
                    _files
                fi
                return
            elif [[ $applet == crictl ]]; then
                (( i + 1 == CURRENT )) || return 1
                out=$($words[1] crictl completion bash 2> /dev/null) || return 1
                out=${out#*opts=\"}
                compadd -- ${=out%%\"*}
                return
            elif [[ -n $applet ]]; then
                out=$($words[1] $applet "${(@)words[i+1,CURRENT-1]}" --generate-bash-completion 2> /dev/null) || return 1
                compadd -- ${${(f)out}%%:*}
                return
            fi
        else
            given=yes
        fi
    done
    if [[ -n $skip ]]; then
        local choices=$(_podo_choices $at $skip)
        if [[ -n $choices ]]; then
            compadd -- ${=choices}
        elif (( ${filed[(Ie)$skip]} )); then
            _files
        fi
    elif [[ $cur != -* && $args == FILE ]]; then
        _files
    elif [[ $cur != -* && -n $args && -z $given ]]; then
        compadd -- $(_podo_list $args)
    elif [[ $cur == -* || ${#commands} -eq 0 ]]; then
        _describe flag flags
    else
        _describe command commands
    fi
}

# _podo_list asks podo, about the cluster that was named if that matters.
_podo_list() {
    [[ $1 == *= ]] && set -- $1$name
    $words[1] ${=1} 2> /dev/null
}
`

func writeZsh(w io.Writer, vs []verb) {
	fmt.Fprintln(w, "#compdef podo\n# zsh completion for podo. Made by: podo completion zsh")
	pair := func(name, usage string) string {
		return quote(strings.ReplaceAll(name, ":", `\:`) + ":" + strings.ReplaceAll(usage, ":", " -"))
	}
	fmt.Fprintln(w, "\n# _podo_verb says what may follow a command.\n_podo_verb() {\n    applet='' args='' commands=() flags=() valued=() filed=()\n    case $1 in")
	for _, v := range vs {
		fmt.Fprintf(w, "    (%s)\n", quote(v.path))
		if v.applet != "" {
			fmt.Fprintf(w, "        applet=%s\n", quote(v.applet))
		}
		if s := v.args.source(); s != "" {
			fmt.Fprintf(w, "        args=%s\n", quote(s))
		}
		var commands, flags []string
		for i, n := range names(v.subs) {
			commands = append(commands, pair(n, v.subs[i].usage))
		}
		for _, o := range v.flags {
			for _, s := range o.spelled() {
				flags = append(flags, pair(s, o.usage))
			}
		}
		for _, set := range [][2]string{
			{"commands", strings.Join(commands, " ")},
			{"flags", strings.Join(flags, " ")},
			{"valued", spellings(v.flags, " ", takesValue)},
			{"filed", spellings(v.flags, " ", takesFile)},
		} {
			if set[1] != "" {
				fmt.Fprintf(w, "        %s=(%s)\n", set[0], set[1])
			}
		}
		fmt.Fprintln(w, "        ;;")
	}
	fmt.Fprintln(w, "    esac\n}\n\n# _podo_choices lists the values of a flag that has few.\n_podo_choices() {\n    case \"$1 $2\" in")
	for _, v := range vs {
		for _, o := range v.flags {
			say := "print -r -- " + quote(strings.Join(o.choices, " "))
			switch {
			case o.lister != "":
				say = "_podo_list " + quote(o.lister)
			case len(o.choices) == 0:
				continue
			}
			for _, s := range o.spelled() {
				fmt.Fprintf(w, "    (%s) %s ;;\n", quote(v.path+" "+s), say)
			}
		}
	}
	fmt.Fprintln(w, "    esac\n}")
	fmt.Fprintln(w)
	_, _ = io.WriteString(w, zshScript)
	// Found in $fpath, the file is the function's body; sourced, it registers itself.
	fmt.Fprintln(w, "\nif [[ $funcstack[1] == _podo ]]; then\n    _podo \"$@\"\nelse\n    compdef _podo podo\nfi")
}

const fishScript = `# __podo_at tells whether the words typed so far lead to exactly this command.
function __podo_at
    set -l typed
    for word in (commandline -opc)
        string match -qr -- '^-' $word; or set -a typed $word
    end
    set -l n (count $argv)
    test (count $typed) -ge $n; and test "$typed[1..$n]" = "$argv"
    or return 1
    # Further words are arguments or values of flags, unless they are commands.
    test (count $typed) -eq $n; or not contains -- $typed[(math $n + 1)] (__podo_below $argv)
end

# __podo_list asks podo, about the cluster that was named if that matters.
function __podo_list
    set -l words (commandline -opc)
    set -l name
    if set -l at (contains -i -- --name $words)
        set name $words[(math $at + 1)]
    else
        set name (string replace -rf -- '^--name=' '' $words)
    end
    string match -q -- '*=' $argv[-1]; and set argv[-1] "$argv[-1]$name"
    $words[1] $argv 2> /dev/null
end

function __podo_kubectl
    set -l words (commandline -opc)
    set -l out ($words[1] kubectl __complete $words[3..-1] (commandline -ct) 2> /dev/null)
    or return 1
    test (count $out) -gt 1; and printf '%s\n' $out[1..-2]; and return
    # The last line is a sum: 1 says error, 4 no files.
    contains -- $out[-1] :0 :2; and __fish_complete_path (commandline -ct)
end

function __podo_crictl
    test (count (commandline -opc)) -eq 2; or return
    podo crictl completion bash 2> /dev/null | string join ' ' | string match -rg 'opts="([^"]*)"' | string split -n ' '
end

function __podo_ctr
    set -l words (commandline -opc)
    $words[1] $words[2..-1] --generate-bash-completion 2> /dev/null | string replace -r ':.*' ''
end
`

func writeFish(w io.Writer, vs []verb) {
	fmt.Fprintln(w, "# fish completion for podo. Made by: podo completion fish")
	fmt.Fprintln(w, "\nfunction __podo_below\n    switch \"$argv\"")
	for _, v := range vs {
		if len(v.subs) > 0 {
			fmt.Fprintf(w, "        case %s\n            printf '%%s\\n' %s\n", quote(v.path), strings.Join(names(v.subs), " "))
		}
	}
	fmt.Fprintln(w, "    end\nend")
	fmt.Fprintln(w)
	_, _ = io.WriteString(w, fishScript)
	fmt.Fprintln(w, "\ncomplete -c podo -f")
	for _, v := range vs {
		at := "__podo_at " + v.path
		switch {
		case v.applet != "":
			fmt.Fprintf(w, "complete -c podo -n %s -a '(__podo_%s)'\n", quote(at), v.applet)
			continue
		}
		switch {
		case v.args.file:
			fmt.Fprintf(w, "complete -c podo -n %s -F\n", quote(at))
		case v.args.lister != "":
			fmt.Fprintf(w, "complete -c podo -n %s -a '(__podo_list %s)'\n", quote(at), v.args.lister)
		}
		for i, n := range names(v.subs) {
			fmt.Fprintf(w, "complete -c podo -n %s -a %s -d %s\n", quote(at), n, quote(v.subs[i].usage))
		}
		for _, o := range v.flags {
			line := "complete -c podo -n " + quote(at)
			for _, n := range o.long {
				line += " -l " + n
			}
			for _, n := range o.short {
				line += " -s " + n
			}
			if o.value {
				line += " -x"
			}
			if o.file {
				line = strings.TrimSuffix(line, " -x") + " -r -F"
			}
			switch {
			case o.lister != "":
				line += " -a '(__podo_list " + o.lister + ")'"
			case len(o.choices) > 0:
				line += " -a " + quote(strings.Join(o.choices, " "))
			}
			fmt.Fprintf(w, "%s -d %s\n", line, quote(o.usage))
		}
	}
}
