# podo in a container, from what scripts/build-rootfs made:
#   docker run -d --privileged --cgroupns=private --tmpfs /run -v podo:/var/lib/podo -p 6443:6443 podo
FROM scratch
ADD dist/rootfs.tar /
# Container layers and pods' volumes do not work on an overlay, which / is here.
VOLUME ["/etc/podo", "/var/lib/podo", "/var/lib/kubelet", "/var/log"]
EXPOSE 6443
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/podo"]
CMD ["server"]
