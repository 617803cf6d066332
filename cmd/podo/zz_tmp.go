package main

import "github.com/urfave/cli/v2"

func dataDirFlag() cli.Flag { return &cli.StringFlag{Name: "data-dir", Value: "/var/lib/podo"} }
func dataDir(c *cli.Context) string { return c.String("data-dir") }
