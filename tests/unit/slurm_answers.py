"""What scontrol of Slurm 22.05.8 printed of a job, of the configuration and of a partition."""

RUNNING = (
    "JobId=9 JobName=train UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A Priority=4294901751 Nice=0 Account=physics "
    "QOS=normal JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0 "
    "RunTime=00:01:27 TimeLimit=00:01:00 TimeMin=N/A SubmitTime=2026-11-22T20:27:35 EligibleTime=2026-11-22T20:27:35 "
    "AccrueTime=2026-11-22T20:27:35 StartTime=2026-11-22T20:27:38 EndTime=2026-11-22T20:28:38 Deadline=N/A "
    "PreemptEligibleTime=2026-11-22T20:27:38 PreemptTime=None SuspendTime=None SecsPreSuspend=0 "
    "LastSchedEval=2026-11-22T20:27:38 Scheduler=Main Partition=main AllocNode:Sid=head:13212 ReqNodeList=gpu001 "
    "ExcNodeList=(null) NodeList=gpu001 BatchHost=gpu001 NumNodes=1 NumCPUs=1 NumTasks=1 CPUs/Task=1 "
    "ReqB:S:C:T=0:0:*:* TRES=cpu=1,node=1,billing=1 Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=* MinCPUsNode=1 "
    "MinMemoryNode=0 MinTmpDiskNode=0 Features=(null) DelayBoot=00:00:00 OverSubscribe=OK Contiguous=0 Licenses=(null) "
    "Network=(null) Command=(null) WorkDir=/home/ada StdErr=/home/ada/train.out StdIn=/dev/null "
    "StdOut=/home/ada/train.out Power= \n"
)

CONFIG = """\
Configuration data as of 2026-11-22T20:27:35
AccountingStorageBackupHost = (null)
JobRequeue              = 1
KillOnBadExit           = 0
KillWait                = 6 sec
OverTimeLimit           = 0 min
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
PreemptExemptTime       = 00:00:00
PreemptParameters       = (null)
ProctrackType           = proctrack/cgroup
SlurmctldParameters     = (null)
SLURM_VERSION           = 22.05.8

Cgroup Support Configuration:
AllowedRAMSpace         = 100.0%
"""

GRACE = (
    "PartitionName=grace AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A "
    "DefaultTime=00:30:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=8 Hidden=NO MaxNodes=UNLIMITED "
    "MaxTime=1-02:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=gpu[001-005] PriorityJobFactor=1 "
    "PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=2 PreemptMode=REQUEUE State=UP TotalCPUs=80 "
    "TotalNodes=5 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED "
    "TRES=cpu=80,mem=20000M,node=5,billing=80,gres/gpu=20\n"
)
